"""Figures of clients: who gets what."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.compare.paired import SAME, paired
from experiments.report.reported import Series
from experiments.report.style import (
    COLOURS,
    INK,
    MARKERS,
    WIDTH,
    axis_title,
    draw_points,
    jitter,
    look,
    name_lines,
    new_axes,
    same_ends,
    short,
    told,
    wrapped,
)
from experiments.report.tables import worst_first

MANY = 60
"""Clients and labels up to which label counts are bubbles that one can point at."""
NAMED = 25
"""Clients or labels up to which each has its name at the axis."""


def sorted_clients(series: Sequence[Series]) -> Figure:
    """Draw every client's score, worst to best."""
    figure, axes = new_axes()
    headline = series[0].headline
    for number, each in enumerate(series):
        ranked = worst_first(each)
        share = 100 * (np.arange(len(ranked)) + 0.5) / max(1, len(ranked))
        values, style = [value for _, value in ranked], look(number)
        axes.plot(share, values, label=each.name, lw=1, **style)
        texts = [f"client {c}, {each.name}: {told(headline, value)}" for c, value in ranked]
        draw_points(axes, share, values, texts, s=9, color=style["color"], linewidths=0)
    axes.set(xlabel="clients, worst to best (%)", ylabel=axis_title(headline, "a client"),
             title=series[0].score)  # fmt: skip
    name_lines(axes, series)
    return figure


def violins(series: Sequence[Series]) -> Figure:
    """Draw the distribution of scores over clients, a row for each method."""
    figure, axes = new_axes(1.2 + 0.34 * len(series))
    headline = series[0].headline
    for number, each in enumerate(reversed(series)):
        values = np.array(list(each.scores.values()))
        colour = look(len(series) - 1 - number)["color"]
        # The density of equal values cannot be estimated.
        if len(values) > 1 and np.ptp(values) > 1e-6:
            parts: dict[str, Any] = axes.violinplot(
                values, [number], orientation="horizontal", widths=0.85, showextrema=False
            )
            for body in parts["bodies"]:
                body.set(facecolor=colour, alpha=0.35)
        texts = [f"client {c}, {each.name}: {told(headline, v)}" for c, v in each.scores.items()]
        rows = number + jitter(len(values), 0.25)
        draw_points(axes, values, rows, texts, s=7, color=colour, linewidths=0)
        axes.plot([np.median(values)] * 2, [number - 0.4, number + 0.4], color=INK, lw=1.2)
    axes.set_yticks(range(len(series)), [wrapped(each.name) for each in reversed(series)])
    axes.set(xlabel=axis_title(headline, "a client"), title=series[0].score)
    return figure


def fairness(series: Sequence[Series]) -> tuple[Figure, bool]:
    """Draw the mean over clients against the mean of the worst tenth of them.

    Returns:
      The figure, and whether it has the dotted line on which both are equal.
    """
    figure, axes = new_axes(3.6)
    headline = series[0].headline
    for number, each in enumerate(series):
        mean, worst = (
            headline.shown(np.array(each.last(headline.key("test", statistic))))
            for statistic in ("mean", "worst_decile")
        )
        if not len(mean):
            continue
        spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in (mean, worst)]
        colour = look(number)["color"]
        axes.errorbar(mean.mean(), worst.mean(), yerr=spread[1], xerr=spread[0], color=colour, lw=1)
        texts = [told(headline, values.mean()) for values in (mean, worst)]
        text = f"{each.name}: mean {texts[0]}, worst decile {texts[1]}"
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        draw_points(axes, [mean.mean()], [worst.mean()], [text], s=36, color=colour, marker=marker,
                    label=each.name)  # fmt: skip
    axes.margins(0.08)
    line = same_ends(axes)
    axes.set(xlabel=axis_title(headline, "mean over clients"), title=series[0].score,
             ylabel=axis_title(headline, "mean of the worst decile"))  # fmt: skip
    name_lines(axes, series)
    return figure, line


def gains(series: Sequence[Series], rival: str) -> Figure | None:
    """Draw by how much each client is better than a rival's.

    None without the rival, or with other partitions only.
    """
    rivals = [each for each in series if each.name == rival]
    others = [
        s for s in series if rivals and s not in rivals and s.partition == rivals[0].partition
    ]
    if not others:
        return None
    figure, axes = new_axes(1.3 + 0.42 * len(others))
    headline, labels = series[0].headline, []
    unit = "percentage points" if headline.percent else headline.metric
    for number, each in enumerate(reversed(others)):
        clients, values = paired(each.scores, rivals[0].scores, headline)
        texts = [
            f"client {c}, {each.name}: {headline.text(v, sign='+')} {unit.split()[-1]}"
            for c, v in zip(clients, values, strict=True)
        ]
        colour, rows = look(series.index(each))["color"], number + jitter(len(values), 0.28)
        draw_points(axes, values, rows, texts, s=11, color=colour, alpha=0.75, linewidths=0)
        axes.plot([values.mean()] * 2, [number - 0.4, number + 0.4], color=INK, lw=1.6)
        won, lost = (values > SAME).sum(), (values < -SAME).sum()
        mean = headline.text(values.mean(), sign="+")
        labels.append(f"{wrapped(each.name)}\n{mean}, {won} / {lost}")
    axes.set_yticks(range(len(others)), labels, fontsize=8.5)
    axes.axvline(0, color=INK, lw=0.8, ls=":")
    axes.set(xlabel=f"gain over {rival} ({unit}, a client)", title=series[0].score)
    return figure


def labels(series: Series) -> Figure | None:
    """Draw label counts of all clients below their scores; None where they are not known."""
    run = series.first
    if "label_counts" not in run.data:
        return None
    scores, headline = series.scores, series.headline
    counts = dict(zip(run.data["client_names"], run.data["label_counts"], strict=True))
    ranked = [client for client, _ in worst_first(series) if client in counts]
    if not ranked:
        return None
    table = np.array([counts[client] for client in ranked])
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    values = [scores[client] for client in ranked]
    texts = [
        f"client {c}: {told(headline, value)}, {sum(counts[c]):,} examples"
        for c, value in zip(ranked, values, strict=True)
    ]
    above.vlines(range(len(ranked)), 0, values, color=COLOURS[0], lw=1)
    draw_points(above, range(len(ranked)), values, texts, s=14, color=COLOURS[0], linewidths=0)
    above.set(ylabel=headline.title, title=series.score)
    if headline.percent:
        above.set(ylim=(0, 105))
    _draw_counts(figure, below, table, ranked, run.class_names(table.shape[1]))
    return figure


def _draw_counts(
    figure: Figure, axes: Axes, table: np.ndarray, clients: Sequence[str], classes: Sequence[str]
) -> None:
    """Draw counts ``[K, C]`` as bubbles, or as an image where they are many."""
    if max(table.shape) <= MANY:
        held = table[table > 0]
        positions, labels = (found.tolist() for found in np.nonzero(table))
        # In points; the largest bubble fills its cell, where cells are large enough to be seen.
        cell = max(8.0, min((WIDTH - 0.8) * 72 / table.shape[0], 2.4 * 72 / table.shape[1]))
        axes.set(ylim=(-0.8, table.shape[1] - 0.2))
        at = zip(positions, labels, strict=True)
        texts = [f"client {clients[k]}, label {classes[c]}: {table[k, c]}" for k, c in at]
        area = cell**2 * held / table.max()
        draw_points(
            axes, positions, labels, texts, s=area, color=COLOURS[2], alpha=0.8, linewidths=0
        )
        axes.set_title(f"examples (area; the largest is {table.max():,})")
    else:
        image = axes.imshow(table.T, aspect="auto", interpolation="nearest", cmap="cividis",
                            origin="lower")  # fmt: skip
        figure.colorbar(image, ax=axes, label="examples", location="bottom", aspect=40)
    axes.set(xlim=(-0.8, len(clients) - 0.2), xlabel="client, worst to best", ylabel="label")
    if len(classes) <= NAMED:
        axes.set_yticks(range(len(classes)), [short(name) for name in classes])
    names = [short(name) for name in clients]
    if len(names) <= NAMED:
        upright = max(map(len, names)) > 2
        size = 7.5 if len(names) > 15 else 8.5
        axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if upright else 0)
    else:  # positions in this order would be taken for names
        axes.set_xticks([])
