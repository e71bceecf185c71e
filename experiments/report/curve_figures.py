"""Figures of what changed over rounds."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.compare.entries import SCORES
from experiments.report.reported import ReportedRun, Series
from experiments.report.style import (
    COLOURS,
    INK,
    LOSS,
    WIDTH,
    axis_title,
    look,
    name_lines,
    new_axes,
    tick_at_rounds,
)
from pflalign_jax.diagnostics import GAMMA_EDGES
from pflalign_jax.runs.headline import Headline

SPLITS = {"test": "-", "validation": ":"}
"""Line of a split, where a figure has both."""

# The adapted line is thin, so that the received one stays visible where they are equal.
MODELS = dict(zip(SCORES, ((INK, 1.2), (COLOURS[0], 3.2), (COLOURS[1], 1.2)), strict=True))
"""Colour and width of a model's line, where a figure has all."""


def curves_of_one(series: Series) -> Figure:
    """Draw the headline of every model and split of one method against rounds.

    A ring is at the round that did best on validation, where it `has_ring`.
    """
    figure, axes = new_axes(3.9)
    headline, shown = series.headline, []
    for (model, (colour, width)), split in itertools.product(MODELS.items(), SPLITS):
        key = f"{headline.metric}/{split}/{model}/mean"
        style = {"color": colour, "linewidth": width, "linestyle": SPLITS[split]}
        style |= {"fillstyle": "full" if split == "test" else "none"}  # of a single point
        if draw_curve(axes, series, key, headline, **style):
            shown += [model, split]
    key, best = headline.key("test"), series.first.best
    if has_ring(series) and best is not None:
        axes.plot(best["round"], headline.shown(best[key]), "o", color=COLOURS[1], markersize=9,
                  fillstyle="none")  # fmt: skip
    tick_at_rounds(axes, [series])
    axes.set(
        xlabel="round", ylabel=axis_title(headline, "mean over clients"), title=headline.metric
    )
    lines = [Line2D([], [], color=c, lw=w, label=name) for name, (c, w) in MODELS.items()]
    lines += [Line2D([], [], color=INK, ls=style, label=name) for name, style in SPLITS.items()]
    known = [line for line in lines if line.get_label() in shown]
    figure.legend(handles=known, loc="outside lower center", ncols=2)
    return figure


def has_ring(series: Series) -> bool:
    """Tell whether `curves_of_one` marks a round: one of several, chosen with the only seed."""
    best, rows = series.first.best, series.first.rows
    known = best is not None and best.get(series.headline.key("test")) is not None
    return known and len(series.runs) == 1 and len(rows) > 1


def scores(series: Sequence[Series]) -> Figure:
    """Draw the headline of several methods against rounds."""
    headline = series[0].headline
    return _curves(series, headline.key("test"), headline, series[0].score, "mean over clients")


def losses(series: Sequence[Series]) -> Figure:
    """Draw the training loss against rounds."""
    return _curves(series, "loss/train/mean", LOSS, "loss/train", "mean over the cohort")


def _curves(series: Sequence[Series], key: str, metric: Headline, title: str, whose: str) -> Figure:
    figure, axes = new_axes()
    for number, each in enumerate(series):
        draw_curve(axes, each, key, metric, label=each.name, **look(number))
    tick_at_rounds(axes, series)
    axes.set(xlabel="round", ylabel=axis_title(metric, whose), title=title)
    name_lines(axes, series)
    return figure


def draw_curve(axes: Axes, series: Series, key: str, metric: Headline, **style: Any) -> bool:
    """Draw a metric against rounds, with the standard deviation over seeds as a band.

    Returns:
      Whether it has any value to draw.
    """
    rounds, values = series.curve(key)
    if not np.isfinite(values).any():
        return False
    values = metric.shown(values)
    mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
    axes.fill_between(rounds, mean - spread, mean + spread, color=style["color"], alpha=0.2, lw=0)
    one = "o" if len(rounds) == 1 else None  # a line of one point is not seen
    axes.plot(rounds, mean, marker=one, **style)
    return True


def against(series: Sequence[Series], costs: Sequence[str], unit: float, label: str) -> Figure:
    """Draw the headline against what rounds have cost so far, the first seed.

    Args:
      series: the methods.
      costs: columns of rows that say what a round has cost, added up.
      unit: by which the sum is divided.
      label: of the axis.
    """
    figure, axes = new_axes()
    headline = series[0].headline
    for number, each in enumerate(series):
        found = [row.get(headline.key("test")) for row in each.first.rows]
        values = [np.nan if value is None else headline.shown(value) for value in found]
        spent = spent_so_far(each.first, costs) / unit
        axes.plot(spent, values, label=each.name, marker=".", **look(number))
    axes.set(xlabel=label, ylabel=axis_title(headline, "mean over clients"), title=series[0].score)
    axes.locator_params(axis="x", nbins=5)  # numbers of many digits have room
    name_lines(axes, series)
    return figure


def spent_so_far(run: ReportedRun, costs: Sequence[str]) -> np.ndarray:
    """Return what all rounds have cost at each evaluation, ``[T]``.

    A row of a run says what one round has cost, in the mean since the row before.
    """
    rounds = np.diff([row["round"] for row in run.rows], prepend=0)
    return np.cumsum(rounds * [sum(row[cost] for cost in costs) for row in run.rows])


def alignment(series: Sequence[Series], most: int) -> Figure | None:
    """Draw what was recorded of P and γ over rounds, of ``most`` methods; None if nothing was."""
    recorded = [(each, rows) for each in series if (rows := _diagnostics(each))][:most]
    if not recorded:
        return None
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, symbol in zip(panels, ("P", "γ"), strict=True):
        for number, (each, rows) in enumerate(recorded):
            found = [(row["round"], *values) for row in rows if (values := _quantiles(row, symbol))]
            if not found:
                continue
            rounds, low, middle, high = zip(*found, strict=True)
            style = look(number)
            axes.fill_between(rounds, low, high, color=style["color"], alpha=0.15, lw=0)
            axes.plot(rounds, middle, label=each.name if symbol == "P" else None, **style)
        axes.set(ylabel=f"{symbol} (no unit)", title=f"{symbol}: median and 5 % to 95 %")
    panels[-1].set(xlabel="round")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))  # of every round
    name_lines(panels[-1], [each for each, _ in recorded])
    return figure


def _diagnostics(series: Series) -> list[dict[str, Any]]:
    """Return the first seed's rows that say something of P."""
    rows = next((run.diagnostics for run in series.runs if run.diagnostics), [])
    return [row for row in rows if row.keys() >= {"P/q05", "P/q50", "P/q95"}]


def _quantiles(row: dict[str, Any], symbol: str) -> tuple[float, ...]:
    """Return the 5 %, 50 % and 95 % quantiles of P or of γ, () where they are not known."""
    if symbol == "P":
        return row["P/q05"], row["P/q50"], row["P/q95"]
    if "gamma/histogram" not in row:
        return ()
    # γ is recorded as a histogram: its distribution function is inverted between the edges.
    below = np.concatenate([[0.0], np.cumsum(row["gamma/histogram"])])
    shares = np.array([0.05, 0.5, 0.95]) * below[-1]
    return tuple(np.interp(shares, below, GAMMA_EDGES).tolist())
