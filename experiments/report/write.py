"""From directories of runs to a page."""

import pathlib

import matplotlib

from experiments.report import figures, page, style
from experiments.report.read import ReportError, read
from pflalign_jax.runs import files


def write_report(paths: list[pathlib.Path], out: pathlib.Path | None = None) -> pathlib.Path:
    """Write the report of runs and comparisons and return its ``report.html``.

    Args:
      paths: their directories.
      out: directory of the page and its figures; None: ``report/`` in the first of the paths.

    Raises:
      ReportError: for what is no run or cannot be written, naming it.
      RunError: naming a file that cannot be read.
    """
    notes: list[str] = []
    series = read(paths, notes)
    out = paths[0] / "report" if out is None else out
    commands = [command for path in paths if (command := files.read_command(path))]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(style.STYLE):
            drawn = figures.figures(series)
            page.write(out, series, drawn, list(dict.fromkeys(commands)), notes)
    except OSError as error:
        raise ReportError(f"{out} cannot be written: {error.strerror}; choose --out") from error
    return out / "report.html"
