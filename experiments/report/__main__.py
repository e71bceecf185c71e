"""Write a page of figures and tables of runs or of a comparison.

python -m experiments.report DIR [DIR ...] [--out=DIR]

Every DIR is the --workdir of experiments.run, finished or not, or of experiments.compare. Runs
that differ in the seed only are one method. Writes report.html, which needs no other file and no
network, and every figure as PNG and PDF.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import matplotlib

from experiments.report import figures, page
from experiments.report.read import ReportError, read
from pflalign_jax.cli.errors import fail


def write_report(paths: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Write the report of runs and comparisons and return its ``report.html``.

    Args:
      paths: their directories.
      out: directory of the page and its figures.

    Raises:
      ReportError: for what cannot be read or written, naming it.
    """
    notes: list[str] = []
    series = read(paths, notes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(figures.STYLE):
            page.write(out, series, figures.figures(series), commands(paths), notes)
    except OSError as error:
        raise ReportError(f"{out} cannot be written: {error.strerror}; choose --out") from error
    return out / "report.html"


def commands(paths: list[pathlib.Path]) -> list[str]:
    """Return the commands that the directories' runs were begun with, as far as they are known."""
    known = [path / "command.txt" for path in paths]
    return list(dict.fromkeys(file.read_text().strip() for file in known if file.exists()))


def main(arguments: Sequence[str]) -> None:
    """Write the report of the given directories."""
    parser = argparse.ArgumentParser(
        "python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dirs", metavar="DIR", nargs="+", type=pathlib.Path, help="a --workdir")
    parser.add_argument("--out", type=pathlib.Path, help="default: report/ in the first DIR")
    given = parser.parse_args(arguments)
    try:
        for path in given.dirs:
            if not path.is_dir():
                raise ReportError(f"{path} is not a directory")
        print(write_report(given.dirs, given.out or given.dirs[0] / "report"))
    except ReportError as error:
        fail(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
