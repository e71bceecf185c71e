"""How the figures of a report look. Points carry a text that a page can show, see `tips`."""

import math
import textwrap
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from experiments.report.reported import Series
from pflalign_jax.runs.headline import Headline

# Okabe and Ito's palette without black and yellow: safe for colour-blind readers on any ground.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>P"

WIDTH = 4.7
"""Inches of a figure: a phone shows it whole, with texts that can be read."""
TICKS = 8
"""Ticks on an axis of rounds, at most."""
NAME = 14
"""Characters of a name at a tick, at most."""
LINE = 20
"""Characters of a line of a method's name beside its row."""

INK = "#010203"
"""Colour of text and axes; a page puts the reader's own in its place."""

STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.xmargin": 0.02,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

LOSS = Headline("loss", higher_is_better=False, percent=False)
"""How a training loss is shown."""


def tips(figure: Figure, on: bool = True) -> None:
    """Let points carry their texts as links ``tip:TEXT``, which SVG keeps, or take them off."""
    for points in figure.findobj(PathCollection):
        texts = getattr(points, "tip_texts", None)
        if texts is not None:
            points.set_urls([f"tip:{urllib.parse.quote(t)}" for t in texts] if on else [None])


def draw_points(axes: Axes, x: Any, y: Any, texts: Iterable[str], **style: Any) -> None:
    """Draw points that carry a text each."""
    points = axes.scatter(x, y, **style)
    setattr(points, "tip_texts", list(texts))  # noqa: B010 (an attribute of ours, see `tips`)


def new_axes(height: float = 3.3) -> tuple[Figure, Axes]:
    """Return a figure of one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def look(number: int) -> dict[str, Any]:
    """Return colour and line of a method: colours repeat with another line."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
    }


def name_lines(axes: Axes, series: Sequence[Series]) -> None:
    """Name the lines of several methods below the axes."""
    if len(series) > 1:  # one line needs no name
        figure = axes.figure
        assert isinstance(figure, Figure)
        columns = max(1, min(4, 40 // max(len(each.name) for each in series)))
        figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(series) / columns))
        figure.legend(loc="outside lower center", ncols=columns)


def axis_title(headline: Headline, whose: str) -> str:
    """Return the title of an axis: what its numbers are, and whose."""
    return f"{headline.title}, {whose}"


def told(headline: Headline, value: float) -> str:
    """Return a value with its unit."""
    return f"{headline.text(value)} {headline.unit}".strip()


def wrapped(name: str) -> str:
    """Return the name of a method in lines that leave room for what stands beside it."""
    return textwrap.fill(name, LINE)


def short(name: str) -> str:
    """Return a name that has room at a tick."""
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def tick_at_rounds(axes: Axes, series: Sequence[Series]) -> None:
    """Put ticks of an axis of rounds where methods were evaluated."""
    rounds = sorted({int(row["round"]) for each in series for run in each.runs for row in run.rows})
    axes.set_xticks(round_ticks(rounds))


def round_ticks(rounds: Sequence[int]) -> list[int]:
    """Return the rounds that get a tick: at even distances where they are, and the last one.

    Args:
      rounds: that were evaluated, ascending, at least one.

    >>> round_ticks([5, 10, 15]), round_ticks(range(1, 61)), round_ticks([*range(5, 61, 5), 62])
    ([5, 10, 15], [10, 20, 30, 40, 50, 60], [10, 20, 30, 40, 50, 62])
    """
    first, last = rounds[0], rounds[-1]
    if len(rounds) <= TICKS:
        return list(rounds)
    factors = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(first * factor for factor in factors if last // (first * factor) < TICKS)
    ticks = [done for done in rounds if done % step == 0 and last - done >= step / 2]
    return [*ticks, last]


def same_ends(axes: Axes) -> bool:
    """Draw the diagonal without making the axes wider, and tell whether it can be seen."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ends = [max(left, low), min(right, high)]
    if ends[0] >= ends[1]:
        return False
    axes.plot(ends, ends, ":", color=INK, lw=1.2, scalex=False, scaley=False)
    return True


def jitter(count: int, widest: float) -> np.ndarray:
    """Return offsets ``[count]`` that keep points in a row from lying on each other."""
    return np.linspace(-widest, widest, 7)[np.arange(count) * 3 % 7]
