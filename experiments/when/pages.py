"""Maps as heat maps, as a table for readers, and as a table for programs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.compare.heat_maps import Side, draw_heat_map
from experiments.compare.paired import Difference
from experiments.output import markdown, write_csv, write_figure
from experiments.when.cells import MAPS, Cell
from pflalign_jax.cli import plots
from pflalign_jax.runs import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LABELS = {
    "dataset.alpha": "Dirichlet α",
    "dataset.examples_per_client": "examples per client",
    "dataset.label_noise": "wrong labels",
    "batch_size": "batch size",
    "local_epochs": "local epochs",
    "cohort_size": "clients per round",
    "rounds": "rounds",
}
"""What fields are called in pictures and tables."""


SHADED = 0.95
"""Share of the gains between which colours tell; those beyond have the last colour."""


def write(root: pathlib.Path, found: Mapping[str, Sequence[Cell]], command: str) -> None:
    """Write ``when.csv``, ``when.md`` and ``when.png``.

    Args:
      root: directory.
      found: map to its cells, row by row.
      command: that makes them again.
    """
    write_csv(root / "when.csv", table(found))
    files.write_text(root / "when.md", page(found, command))
    write_figure(root / "when.png", picture(found))


def places(name: str, cells: Sequence[Cell]) -> list[tuple[float, float, Cell]]:
    """Return a map's cells with their x and y."""
    of_map = MAPS[name]
    at = [(x, y) for y in of_map.ys for x in of_map.xs]
    return [(x, y, cell) for (x, y), cell in zip(at, cells, strict=True)]


def table(found: Mapping[str, Sequence[Cell]]) -> list[list[Any]]:
    """Return the titles and a row for each cell and variant."""
    rows: list[list[Any]] = [
        ["map", "x", "x_value", "y", "y_value", "method", "gain", "low", "high", "clear"]
        + ["score", "rival", "rival_score", "seconds"]
    ]
    for name, cells in found.items():
        for x, y, cell in places(name, cells):
            for method, gain in cell.gains.items():
                rows.append(
                    [name, MAPS[name].x, x, MAPS[name].y, y, method, gain.mean, gain.low, gain.high]
                    + [gain.is_clear, cell.scores.get(method, ""), cell.rival]
                    + [cell.scores.get(cell.rival, ""), cell.seconds]
                )
    return rows


def page(found: Mapping[str, Sequence[Cell]], command: str) -> str:
    """Return a page in Markdown with a table for each map."""
    each: list[Cell] = []
    for cells in found.values():  # maps share cells
        known = [cell.values for cell in each]
        each += [cell for cell in cells if cell.values not in known]
    lines = [
        "# When gradient alignment pays",
        "",
        f"    {command}",
        "",
        "Gains are paired differences of personal/adapted on test data, client by client, over the "
        "rival that is best on validation, with the 95 % interval over clients; **bold** where it "
        "can be told from zero, with every seed. "
        f"The comparisons took {sum(cell.seconds for cell in each) / 60:.0f} minutes.",
        "",
        *summary(each),
    ]
    for name, cells in found.items():
        methods = list(cells[0].gains)
        titles = [LABELS.get(field, field) for field in (MAPS[name].x, MAPS[name].y)]
        titles += ["best rival", *methods]
        rows = []
        for x, y, cell in places(name, cells):
            row = [f"{x:g}", f"{y:g}", f"{cell.rival} {cell.scores.get(cell.rival, np.nan):.1f}"]
            row += [_text(cell.gains[method]) for method in methods]
            rows.append(row)
        lines += ["", f"## {name}", "", *markdown(titles, rows)]
    return "\n".join([*lines, ""])


def summary(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each variant: in how many cells it is ahead of the best rival, or behind.

    >>> ahead, behind = Difference(1.0, 0.5, 1.5), Difference(-1.0, -1.5, -0.5)
    >>> cells = [Cell({}, "ditto", {}, {"pflalign": gain}, 1.0) for gain in (ahead, behind, behind)]
    >>> summary(cells)
    ['* `pflalign` is ahead in 1 of 3 cells and behind in 2; in the others it cannot be told.']
    """
    lines = []
    for method in cells[0].gains:
        clear = [cell.gains[method].mean for cell in cells if cell.gains[method].is_clear]
        ahead = sum(mean > 0 for mean in clear)
        lines.append(
            f"* `{method}` is ahead in {ahead} of {len(cells)} cells and behind in "
            f"{len(clear) - ahead}; in the others it cannot be told."
        )
    return lines


def _text(gain: Difference) -> str:
    if not np.isfinite(gain.mean):
        return "diverged"
    mean = f"{gain.mean:+.1f}"
    return f"{f'**{mean}**' if gain.is_clear else mean} ({gain.low:+.1f} to {gain.high:+.1f})"


def picture(found: Mapping[str, Sequence[Cell]]) -> Figure:
    """Draw a row of heat maps for each map, one for each variant of pFLAlign.

    Cells whose gain cannot be told from zero are hatched.
    """
    methods = list(next(iter(found.values()))[0].gains)
    gains = [gain.mean for cells in found.values() for c in cells for gain in c.gains.values()]
    known = [abs(gain) for gain in gains if np.isfinite(gain)]
    # A few cells far below all others would take the colours of the rest; all have their number.
    limit = float(np.quantile(known, SHADED)) if any(known) else 1.0
    size = (3.0 * len(methods) + 1.0, 2.6 * len(found))
    figure = plots.new_figure(size)
    axes = figure.subplots(len(found), len(methods), squeeze=False)
    for row, (name, cells) in zip(axes, found.items(), strict=True):
        for ax, method in zip(row, methods, strict=True):
            shown = heat_map(ax, name, [cell.gains[method] for cell in cells], limit)
            ax.set_title(method.replace("_", " "), fontsize="small")
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, extend="both")
    bar.set_label("gain over the best rival", fontsize="small")
    bar.ax.tick_params(labelsize="x-small")
    return figure


def heat_map(ax: Axes, name: str, gains: Sequence[Difference], limit: float) -> AxesImage:
    """Draw one variant's gains over a map's two fields; return what a colour bar needs."""
    of_map = MAPS[name]
    values = np.array([gain.mean for gain in gains]).reshape(len(of_map.ys), len(of_map.xs))
    x = Side(LABELS.get(of_map.x, of_map.x), [f"{value:g}" for value in of_map.xs])
    y = Side(LABELS.get(of_map.y, of_map.y), [f"{value:g}" for value in of_map.ys])
    for place, gain in enumerate(gains):
        row, column = divmod(place, len(of_map.xs))
        if not gain.is_clear:
            ax.fill_between((column - 0.5, column + 0.5), row - 0.5, row + 0.5, facecolor="none",
                            edgecolor="#888888", hatch="///", linewidth=0)  # fmt: skip
    return draw_heat_map(ax, values, x, y, "PuOr", (-limit, limit), "{:+.1f}".format)
