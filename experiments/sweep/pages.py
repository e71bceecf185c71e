"""The results of a sweep: a table for readers, one for programs, and a picture."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from experiments.compare.columns import EDGE, spread
from experiments.compare.entries import moments
from experiments.compare.heat_maps import LOST, Side, draw_heat_map
from experiments.compare.pictures import BLUE, ORANGE
from experiments.output import markdown, write_csv, write_figure
from experiments.sweep.cells import Result
from experiments.sweep.grid import Grid, has_ranges
from pflalign_jax.cli import plots
from pflalign_jax.runs import files
from pflalign_jax.runs.headline import PERSONAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURED = 3
"""Fields with more than one value that a picture can show, at most."""

PANEL_LETTERS = 24
"""Of the values under a panel of `slices` that have room side by side."""

PRINTED = 10
"""Combinations that a terminal shows."""


def write(
    root: pathlib.Path, results: Sequence[Result], grid: Grid, command: str, again: str
) -> list[str]:
    """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png``; return the names of those written.

    There is no picture of a whole grid of more than `PICTURED` fields.

    Args:
      root: directory.
      results: of all combinations, in the order of the grid; or of a study's, in that of trials.
      grid: fields and values.
      command: that makes them again.
      again: the command that runs the best one again.
    """
    write_csv(root / "sweep.csv", table(results))
    files.write_text(root / "sweep.md", page(results, grid, command, again))
    if not is_whole(results, grid):
        figure = slices(results, grid)
    elif len(varied(grid)) <= PICTURED:
        figure = picture(results, grid)
    else:
        return ["sweep.md", "sweep.csv"]
    write_figure(root / "sweep.png", figure)
    return ["sweep.md", "sweep.csv", "sweep.png"]


def ranked(results: Sequence[Result]) -> list[Result]:
    """Return results with the best on validation first."""
    return sorted(results, key=lambda result: result.merit, reverse=True)


def table(results: Sequence[Result]) -> list[list[Any]]:
    """Return the titles and a row for each combination, for programs to read."""
    fields = list(results[0].combination.values)
    scores = [f"{split}/{of}" for split in ("validation", "test") for of in ("mean", "std")]
    titles = [*fields, "metric", "step_size", "at_edge", *scores, "seeds", "diverged", "seconds"]
    rows: list[list[Any]] = [[*titles, "best"]]
    best = ranked(results)[0]
    for result in results:
        numbers = [*moments(result.validation), *moments(result.test)]
        rows.append(
            [
                *result.combination.values.values(),
                *(result.headline.metric, result.learning_rate, result.at_edge),
                *("" if not np.isfinite(number) else number for number in numbers),
                *(len(result.test), result.diverged),
                "" if not np.isfinite(result.seconds) else result.seconds,
                result is best,
            ]
        )
    return rows


def page(results: Sequence[Result], grid: Grid, command: str, again: str) -> str:
    """Return the page in Markdown; see `write` for the arguments."""
    best, headline = ranked(results)[0], results[0].headline
    titles = [*(f"`{name}`" for name in grid), *heads(results)]
    better = "" if headline.higher_is_better else "; less is better"
    lines = [
        "# Sweep over " + " and ".join(f"`{name}`" for name in grid),
        "",
        f"    {command}",
        "",
        f"{headline.title} of {PERSONAL}, mean over clients after the last round{better}; ± is the "
        "standard deviation over seeds. **Bold**: the best on validation, by which one is to be "
        "chosen.",
        "",
        best_of(results),
        "",
        f"    {again}",
        "",
    ]
    rows = []
    for result in results:
        row = [*result.combination.values.values(), *texts(result, results)]
        if result is best:
            row = [f"**{cell}**" if cell else "" for cell in row]
        rows.append(row)
    lines += markdown(titles, rows)
    if any(result.at_edge for result in results):
        lines += ["", f"{EDGE} lies at the edge of the step sizes that were tried."]
    return "\n".join([*lines, ""])


def heads(results: Sequence[Result]) -> list[str]:
    """Return the titles of `texts`."""
    diverged = any(result.diverged for result in results)
    step = _has_step_size(results)
    return [*["step size"] * step, "validation", "test", *["diverged seeds"] * diverged]


def texts(result: Result, results: Sequence[Result]) -> list[str]:
    """Return what tables say of a result: step size, scores, diverged seeds if there are any."""
    scores = [spread(values, result.headline) for values in (result.validation, result.test)]
    diverged = any(other.diverged for other in results)
    step = [f"{result.learning_rate:g}{EDGE * result.at_edge}"] * _has_step_size(results)
    return [*step, *scores, *[str(result.diverged)] * diverged]


def _has_step_size(results: Sequence[Result]) -> bool:
    """Tell whether tables have a column of step sizes, as they are no field of the grid."""
    return "algorithm.learning_rate" not in results[0].combination.values


def best_of(results: Sequence[Result]) -> str:
    """Return the sentence that names the best combination."""
    best = ranked(results)[0]
    if not best.validation:
        return "No combination was trained to its end: all diverged."
    headline = best.headline
    unit = f" {headline.unit}" if headline.unit else ""
    return (
        f"Best on validation of {len(results)}: {best.combination}, with "
        f"{spread(best.validation, headline)}{unit}; on test "
        f"{spread(best.test, headline)}{unit}."
    )


def printed(results: Sequence[Result], grid: Grid) -> Table:
    """Return the table of the best on validation for a terminal."""
    headline = results[0].headline
    table = Table(
        title=f"{headline.title}, mean over clients", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in grid:
        table.add_column(name, overflow="fold")
    for head in heads(results):
        table.add_column(head, justify="right", overflow="fold")
    for result in ranked(results)[:PRINTED]:
        table.add_row(*result.combination.values.values(), *texts(result, results))
    return table


def varied(grid: Grid) -> list[str]:
    """Return the fields that can have several values; one that cannot if there are none."""
    found = [name for name, texts in grid.items() if len(texts) > 1 or has_ranges({name: texts})]
    return found or list(grid)[:1]


def is_whole(results: Sequence[Result], grid: Grid) -> bool:
    """Tell whether there is a result for every combination of the grid; a study may have others."""
    # Of a study the whole grid may be too large for a list.
    if len(results) != math.prod(len(texts) for texts in grid.values()):
        return False
    wanted = list(itertools.product(*grid.values()))
    return [tuple(result.combination.values.values()) for result in results] == wanted


def picture(results: Sequence[Result], grid: Grid) -> Figure:
    """Draw the score on validation: a line over one field, a heat map over two or several maps.

    Of two fields the last is across, of three the first has a map for each value. The best has a
    frame.
    """
    names = varied(grid)
    shape = [len(grid[name]) for name in names]
    means = np.array([moments(result.validation)[0] for result in results]).reshape(shape)
    winner = ranked(results)[0]
    best = np.unravel_index([result is winner for result in results].index(True), shape)
    if len(names) == 1:
        return _line(results, names[0], grid)
    panels = means if len(names) == PICTURED else means[None]
    rows, columns = panels.shape[1:]
    width, height = max(0.75 * columns + 1.0, 2.2), max(0.45 * rows + 0.9, 1.8)
    figure = plots.new_figure((width * len(panels) + 1.0, height + 0.5))
    known = means[np.isfinite(means)]
    limits = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    y, x = (Side(name, list(grid[name])) for name in names[-2:])
    headline = results[0].headline
    colours = "Blues" if headline.higher_is_better else "Blues_r"
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (ax, values) in enumerate(zip(axes, panels, strict=True)):
        shown = draw_heat_map(ax, values, x, y, colours, limits, headline.text)
        if len(names) == PICTURED:
            ax.set_title(f"{names[0]} {grid[names[0]][place]}", fontsize="small")
        if len(names) < PICTURED or place == best[0]:
            _frame(ax, int(best[-1]), int(best[-2]))
    bar = figure.colorbar(shown, ax=list(axes))
    bar.set_label(f"{headline.title}, validation", fontsize="small")
    bar.ax.tick_params(labelsize="x-small")
    return figure


def slices(results: Sequence[Result], grid: Grid) -> Figure:
    """Draw the score on validation against each field's values, a point for each combination.

    The best has a ring. Those that diverged are left out.
    """
    names = varied(grid)
    known = [i for i, result in enumerate(results) if result.validation]
    scores = [moments(results[i].validation)[0] for i in known]
    figure = plots.new_figure((2.6 * len(names) + 1.2, 3.0))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        places = _places(axes, [results[i].combination.values[name] for i in known], grid[name])
        shown = axes.scatter(places, scores, c=known, cmap="viridis_r", s=22)
        if known:
            best = known.index(results.index(ranked(results)[0]))
            axes.scatter(places[best], scores[best], s=60, facecolors="none", edgecolors=ORANGE)
        axes.set_xlabel(name, fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{results[0].headline.title}, validation", fontsize="small")
    bar = figure.colorbar(shown, ax=list(panels))
    bar.set_label("trial", fontsize="small")
    bar.ax.tick_params(labelsize="x-small")
    return figure


def _places(axes: Axes, texts: Sequence[str], listed: Sequence[str]) -> list[float]:
    """Return where a field's values lie across: numbers of a range, else their places in a list."""
    if not has_ranges({"": listed}):
        # Long names stand aslant, as in a panel they would run into each other.
        axes.set_xticks(range(len(listed)), listed)
        if len("".join(listed)) > PANEL_LETTERS:
            for label in axes.get_xticklabels():
                label.set(rotation=40, ha="right")
        return [listed.index(text) for text in texts]
    if listed[0].endswith(":log"):
        axes.set_xscale("log")
    return [float(text) for text in texts]


def _frame(axes: Axes, column: int, row: int) -> None:
    """Draw a frame around a place of a heat map."""
    left, right, low, high = column - 0.47, column + 0.47, row - 0.47, row + 0.47
    axes.plot(
        [left, right, right, left, left], [low, low, high, high, low], color=ORANGE, linewidth=2
    )


def _line(results: Sequence[Result], name: str, grid: Grid) -> Figure:
    """Draw validation and test against the values of a field, with the deviation over seeds."""
    figure = plots.new_figure((max(0.6 * len(grid[name]) + 2.5, 4.0), 3.2))
    axes = figure.subplots()
    for split, colour, scores in (
        ("validation", BLUE, [result.validation for result in results]),
        ("test", ORANGE, [result.test for result in results]),
    ):
        means, spreads = np.array([moments(values) for values in scores]).T
        spreads = np.nan_to_num(spreads)  # of one seed
        axes.errorbar(range(len(means)), means, spreads, fmt="o-", color=colour, label=split,
                      capsize=2, linewidth=1)  # fmt: skip
        lost = np.flatnonzero(~np.isfinite(means))
        for place in lost:
            axes.annotate(LOST, (place, 0.02), xycoords=("data", "axes fraction"), ha="center")
    axes.set_xticks(range(len(grid[name])), grid[name])
    axes.set(xlabel=name, ylabel=f"{results[0].headline.title}, mean over clients")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure
