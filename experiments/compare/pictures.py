"""The pictures of a comparison: its methods' scores, and how their step sizes were searched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.compare.columns import EDGE
from experiments.compare.entries import RANKED_BY, Entry, is_at_edge, moments, ranked
from pflalign_jax.cli import plots
from pflalign_jax.runs.headline import Headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"

ACROSS = 5
"""Panels in a row of `draw_searches`, at most."""


class Search(NamedTuple):
    """The search of a method's step size.

    Attributes:
      method: its name.
      scores: step size to validation score of the first seed, as `Headline.shown`; None where
        training diverged.
      chosen: the step size chosen.
    """

    method: str
    scores: Mapping[float, float | None]
    chosen: float

    @property
    def at_edge(self) -> bool:
        """Whether a better step size may lie beyond those that were tried."""
        return is_at_edge(self.chosen, self.scores)


def searches_of(entries: Sequence[Entry]) -> list[Search]:
    """Return the searches of a comparison's methods, the best on test data first."""
    return [Search(e.method, e.searched, e.learning_rate) for e in ranked(entries)]


def chart(entries: Sequence[Entry]) -> Figure:
    """Draw mean and worst decile of the adapted models, with the standard deviation over seeds."""
    # Charts grow upwards: the best is drawn last and stands on top.
    order = ranked(entries)[::-1]
    figure = plots.new_figure((7, 0.32 * len(order) + 1.2))
    axes = figure.subplots()
    for name, colour, label in (
        (RANKED_BY, BLUE, "mean over clients"),
        ("personal/adapted/worst_decile", ORANGE, "worst decile of clients"),
    ):
        centre, spread = np.array([moments(e.scores.get(name, [])) for e in order]).T
        spread = np.nan_to_num(spread)  # of one seed
        axes.errorbar(centre, range(len(order)), xerr=spread, fmt="o", color=colour, label=label,
                      capsize=2)  # fmt: skip
    axes.set_yticks(range(len(order)), [e.method for e in order])
    headline = entries[0].headline
    axes.set(xlabel=f"{headline.metric}/test/personal/adapted, in %" if headline.percent
             else f"{headline.metric}/test/personal/adapted")  # fmt: skip
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure


def draw_searches(found: Sequence[Search], headline: Headline, most: int = ACROSS) -> Figure:
    """Draw score on validation against step size, a panel for each method.

    All panels have the same axes. The chosen step size has a ring and its score; if it is at the
    edge of what was tried, the side beyond is grey. Where training diverged, or was so bad that the
    others could not be told apart, there is a cross at the panel's worst end.

    Args:
      found: of all methods, in the order of the panels.
      headline: their metric.
      most: panels in a row, at most.
    """
    across = min(most, len(found))
    down = math.ceil(len(found) / across)
    figure = plots.new_figure((max(1.9 * across + 0.7, 4.5), 1.7 * down + 1.0))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    rates = [rate for search in found for rate in search.scores]
    low, high = _limits(found, headline)
    grid[0, 0].set(xscale="log", xlim=(min(rates) / 2, max(rates) * 2), ylim=(low, high))
    if not headline.higher_is_better:
        grid[0, 0].invert_yaxis()  # better is up
    for axes in grid.flat[len(found):]:  # fmt: skip
        axes.set_visible(False)
    for axes, search in zip(grid.flat, found, strict=False):
        _draw_search(axes, search, headline)
    figure.supxlabel("step size", fontsize="small")
    figure.supylabel(headline.title, fontsize="small")
    figure.suptitle(
        "validation, seed 0: ○ chosen, × diverged or far below\n"
        "grey: beyond what was tried, where a better one may be",
        fontsize="small",
    )
    return figure


SPREAD = 5.0
"""How far below the median of the chosen scores panels reach, in units of what they reach above."""


def _limits(found: Sequence[Search], headline: Headline) -> tuple[float, float]:
    """Return the range of scores that panels show: all, or what tells those that matter apart."""
    known = [x for search in found for x in search.scores.values() if x is not None]
    if not known:
        return 0.0, 1.0
    merits = np.array([headline.merit(x) for x in known])
    best = [max(m) for s in found if (m := [headline.merit(x) for x in s.scores.values()
                                            if x is not None])]  # fmt: skip
    middle = float(np.median(best))
    floor = middle - SPREAD * max(max(best) - middle, 0.05 * abs(max(best)))
    least, most = max(merits.min(), floor), merits.max()
    room = 0.12 * (most - least) or 0.5
    ends = headline.merit(least - room), headline.merit(most + 2 * room)
    return min(ends), max(ends)


def _draw_search(axes: Axes, search: Search, headline: Headline) -> None:
    """Draw one method's scores against its step sizes."""
    bottom = axes.get_ylim()[0]  # the worst end, also of an axis that is turned round
    inside = axes.get_ylim()
    rates = sorted(search.scores)
    values = [search.scores[rate] for rate in rates]
    seen = [v is not None and min(inside) <= v <= max(inside) for v in values]
    shown = [v if ok else np.nan for v, ok in zip(values, seen, strict=True)]
    axes.plot(rates, np.array(shown, float), "o-", color=BLUE, markersize=3, linewidth=1)
    lost = [rate for rate, ok in zip(rates, seen, strict=True) if not ok]
    if lost:
        axes.plot(lost, [bottom] * len(lost), "x", color=ORANGE, markersize=6, clip_on=False)
    chosen = search.scores[search.chosen]
    if search.at_edge:
        left, right = axes.get_xlim()
        edges = (left, search.chosen) if search.chosen == rates[0] else (search.chosen, right)
        axes.axvspan(*edges, color=GREY, alpha=0.25, linewidth=0)
    if chosen is not None:
        # Of one that is far below all others only the number says how far.
        at = (search.chosen, bottom if search.chosen in lost else chosen)
        axes.plot(*at, "o", markersize=8, markerfacecolor="none", color=BLUE, clip_on=False)
        axes.annotate(headline.text(chosen), at, (0, 6), ha="center", textcoords="offset points",
                      fontsize="x-small")  # fmt: skip
    axes.set_title(f"{search.method}{EDGE * search.at_edge}", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axes.xaxis.set_minor_formatter(lambda rate, _: "")
    axes.grid(alpha=0.3)
