"""Heat maps: a number for each pair of values of two fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

LOST = "×"
"""Stands where there is no number, as training diverged."""

DARK = 0.45
"""Lightness of a colour, of 1, below which the text on it is white."""


class Side(NamedTuple):
    """A side of a heat map.

    Attributes:
      title: what its values are.
      labels: of its values.
    """

    title: str
    labels: Sequence[str]


def draw_heat_map(
    axes: Axes,
    values: np.ndarray,
    x: Side,
    y: Side,
    colours: str,
    limits: tuple[float, float],
    text: Callable[[float], str],
) -> AxesImage:
    """Draw a heat map with its numbers; return what a colour bar needs.

    Args:
      axes: that get it.
      values: ``[len(y.labels), len(x.labels)]``; NaN where there is none. The first row is below.
      x, y: its sides.
      colours: name of a colour map.
      limits: values of its first and its last colour.
      text: from a value to what stands in its place.
    """
    low, high = limits
    shown = axes.imshow(values, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        known = bool(np.isfinite(value))
        red, green, blue, _ = shown.cmap(shown.norm(value)) if known else (1.0,) * 4
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < DARK else "black"
        axes.text(column, row, text(value) if known else LOST, ha="center", va="center",
                  fontsize="x-small", color=ink)  # fmt: skip
    axes.set_xticks(range(len(x.labels)), x.labels)
    axes.set_yticks(range(len(y.labels)), y.labels)
    axes.set_xlabel(x.title, fontsize="x-small")
    axes.set_ylabel(y.title, fontsize="x-small")
    axes.tick_params(labelsize="x-small")
    return shown
