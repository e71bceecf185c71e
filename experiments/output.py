"""Files of results: tables for readers and for programs, pictures."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pflalign_jax.cli import plots
from pflalign_jax.runs import csv_cells, files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_csv(path: pathlib.Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv file whole, its texts as of `csv_cells.cell`.

    Args:
      path: the file.
      rows: the titles, then values.

    Raises:
      WorkdirError: naming the file, if it cannot be written.
    """
    text = io.StringIO()
    csv.writer(text).writerows([csv_cells.cell(value) for value in row] for row in rows)
    files.write_text(path, text.getvalue())


def write_figure(path: pathlib.Path, figure: Figure) -> None:
    """Write a figure as PNG.

    Raises:
      WorkdirError: naming the file, if it cannot be written.
    """
    with files.named_write_errors(path):
        plots.save_figure(figure, path)


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    r"""Return the lines of a table in Markdown.

    >>> markdown(["a", "b"], [["1", "x|y"]])
    ['| a | b |', '|---|---|', '| 1 | x\\|y |']
    """
    head = "|" + "".join(f" {title} |" if title else " |" for title in titles)
    lines = [head, "|" + "---|" * len(titles)]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return lines
