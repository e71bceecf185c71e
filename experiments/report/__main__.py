"""Write a page of figures and tables of runs or of a comparison.

python -m experiments.report DIR [DIR ...] [--out=DIR]

Every DIR is the --workdir of experiments.run, finished or not, or of experiments.compare. Runs
that differ in the seed only are one method. Writes report.html, which needs no other file and no
network, and every figure as PNG and PDF.
"""

import pathlib

import matplotlib
from absl import app, flags, logging

from experiments.report import figures, page
from experiments.report.read import ReportError, read
from experiments.stop import fail

_OUT = flags.DEFINE_string("out", None, "Where to write; default: report/ in the first DIR.")


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


def main(argv: list[str]) -> None:
    """Write the report of the given directories."""
    logging.set_verbosity(logging.WARNING)
    paths = [pathlib.Path(given) for given in argv[1:]]
    if not paths:
        fail("no directory given; pass the --workdir of experiments.run or experiments.compare")
    try:
        for path in paths:
            if not path.is_dir():
                raise ReportError(f"{path} is not a directory")
        print(write_report(paths, pathlib.Path(_OUT.value or paths[0] / "report")))
    except ReportError as error:
        fail(str(error))


if __name__ == "__main__":
    app.run(main)
