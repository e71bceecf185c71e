"""The figures of a report. Points carry a text that a page can show, see `tips`."""

import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.compare.entries import RIVALS
from experiments.compare.paired import paired
from experiments.report.certificates import CAPTION, draw_certificates, read_certificates
from experiments.report.read import Series
from pflalign_jax.diagnostics import GAMMA_EDGES
from pflalign_jax.runs.headline import Headline

# Okabe and Ito's palette without black and yellow: safe for colour-blind readers on any ground.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>P"
SHOWN = 10
"""Methods in a figure with a line for each; a page's table has all."""
MANY = 60
"""Clients up to which label counts are bubbles that one can point at."""

INK = "#010203"
"""Colour of text and axes; a page puts the reader's own in its place."""

STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def figures(series: Sequence[Series]) -> dict[str, tuple[Figure, str]]:
    """Return ``{name: (figure, caption)}``, those for which something was recorded."""
    some, headline = shown(series), series[0].headline
    metric = re.sub(r"[^\w-]", "_", headline.metric)  # names of figures are names of files
    seeds = max(len(each.runs) for each in series)
    band = "; the band is the standard deviation over seeds" if seeds > 1 else ""
    fewer = (
        f" The {len(some)} of {len(series)} methods shown: pFLAlign, local training, FedAvg and "
    )
    fewer = f"{fewer}the best of the others." if len(some) < len(series) else ""
    made: dict[str, tuple[Figure | None, str]] = {
        "learning_curves": (
            _curves(some, headline.key("test"), headline, some[0].score, "mean over clients"),
            f"Test {headline.metric} of every client's model after its local steps{band}.{fewer}",
        ),
        "training_loss": (
            _curves(some, "loss/train/mean", LOSS, "loss/train", "mean over the cohort"),
            f"Training loss of the round's cohort{band}.{fewer}",
        ),
        f"{metric}_against_bytes": (
            _against(some, lambda row: row["round"] * (row["bytes_up"] + row["bytes_down"]) / 1e6,
                     "sent in both directions so far (MB)"),
            f"What communication buys; the first seed.{fewer}",
        ),
        f"{metric}_against_seconds": (
            _against(some, lambda row: row["seconds_total"], "time so far, with evaluations (s)"),
            f"What time buys, on the machine that ran it; the first seed.{fewer}",
        ),
        "clients_sorted": (
            _sorted_clients(some),
            f"Every client's {headline.metric} (mean over seeds), worst to best.{fewer} Point at "
            "a dot to see the client.",
        ),
        "clients_violin": (
            _violins(some),
            f"The same distribution; the line is the median, a client each.{fewer}",
        ),
        "fairness": (
            _fairness(series),
            "The mean over clients against the mean of the worst tenth of them, after the last "
            "round; crosses are standard deviations over seeds. On the dotted line all are equal.",
        ),
    }  # fmt: skip
    for rival in RIVALS:
        made[f"gain_over_{rival}"] = (
            _gains(some, rival),
            f"For every client the difference to {_TITLES[rival]}, with clients won / lost.{fewer}",
        )
    made["alignment"] = (
        _alignment(series),
        "What was recorded of the preconditioner P over its coordinates, and of the weights γ over "
        "the cohort: median, and the band from 5 % to 95 %.",
    )
    made["labels"] = (
        _labels(series[0]),
        f"Examples of each label in each client, all splits, beside its {headline.metric} with "
        f"{series[0].name}; the worst client first.",
    )
    for number, each in enumerate(some):
        rows = read_certificates(each.runs[0].path)
        if rows:
            made[f"certificates_{number}"] = (draw_certificates(each.name, rows), CAPTION)
    return {name: (figure, text) for name, (figure, text) in made.items() if figure is not None}


_TITLES = {"local": "local training", "fedavg": "FedAvg fine-tuned by each client"}


LOSS = Headline("loss", higher_is_better=False, percent=False)
"""How a training loss is shown."""


def _axis(headline: Headline, whose: str) -> str:
    """Return the title of an axis: what its numbers are, and whose."""
    return f"{headline.unit or headline.metric}, {whose}"


def _told(headline: Headline, value: float) -> str:
    """Return a value with its unit."""
    return f"{headline.text(value)} {headline.unit}".strip()


def _worst_first(each: Series) -> list[tuple[str, float]]:
    """Return clients and scores, the worst first."""
    return sorted(each.scores.items(), key=lambda item: each.headline.merit(item[1]))


def shown(series: Sequence[Series]) -> list[Series]:
    """Return the series that line figures show: at most `SHOWN`, in their order."""
    first = [s for s in series if s.name in ("pflalign", *RIVALS)]
    rest = [s for s in series if s not in first][: max(0, SHOWN - len(first))]
    return [s for s in series if s in first or s in rest]


def tips(figure: Figure, on: bool = True) -> None:
    """Let points carry their texts as links ``tip:TEXT``, which SVG keeps, or take them off."""
    for points in figure.findobj(PathCollection):
        texts = getattr(points, "tip_texts", None)
        if texts is not None:
            points.set_urls([f"tip:{urllib.parse.quote(t)}" for t in texts] if on else [None])


def _points(axes: Axes, x: Any, y: Any, texts: Iterable[str], **style: Any) -> None:
    """Draw points that carry a text each."""
    points = axes.scatter(x, y, **style)
    setattr(points, "tip_texts", list(texts))  # noqa: B010 (an attribute of ours, see `tips`)


def _axes(height: float = 3.5, width: float = 5.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _look(number: int) -> dict[str, Any]:
    """Return colour and line of a method: colours repeat with another line."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
    }


def _legend(axes: Axes, series: Sized) -> None:
    if len(series) > 1:  # one line needs no name
        axes.figure.legend(loc="outside lower center", ncols=3)


def _curves(series: Sequence[Series], key: str, metric: Headline, title: str, whose: str) -> Figure:
    """Draw a metric against rounds, with the standard deviation over seeds as a band."""
    figure, axes = _axes(3.5 + 0.2 * (len(series) // 3))
    for number, each in enumerate(series):
        rounds, values = each.curve(key)
        if not len(rounds):
            continue
        values, look = metric.shown(values), _look(number)
        mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
        axes.fill_between(
            rounds, mean - spread, mean + spread, color=look["color"], alpha=0.2, lw=0
        )
        one = "o" if len(rounds) == 1 else None  # a line of one point is not seen
        axes.plot(rounds, mean, label=each.name, marker=one, **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel=_axis(metric, whose), title=title)
    _legend(axes, series)
    return figure


def _against(
    series: Sequence[Series], cost: Callable[[dict[str, float]], float], label: str
) -> Figure:
    """Draw the headline against what a row says that it has cost so far."""
    figure, axes = _axes(3.5 + 0.2 * (len(series) // 3))
    headline = series[0].headline
    for number, each in enumerate(series):
        rows = each.runs[0].rows
        found = [row.get(headline.key("test")) for row in rows]
        values = [np.nan if value is None else headline.shown(value) for value in found]
        axes.plot([cost(row) for row in rows], values, label=each.name, marker=".", **_look(number))
    axes.set(xlabel=label, ylabel=_axis(headline, "mean over clients"), title=series[0].score)
    _legend(axes, series)
    return figure


def _sorted_clients(series: Sequence[Series]) -> Figure:
    """Draw every client's score, worst to best."""
    figure, axes = _axes(3.5 + 0.2 * (len(series) // 3))
    headline = series[0].headline
    for number, each in enumerate(series):
        ranked = _worst_first(each)
        share = 100 * (np.arange(len(ranked)) + 0.5) / max(1, len(ranked))
        values, look = [value for _, value in ranked], _look(number)
        axes.plot(share, values, label=each.name, lw=1, **look)
        texts = [f"client {c}, {each.name}: {_told(headline, value)}" for c, value in ranked]
        _points(axes, share, values, texts, s=9, color=look["color"], linewidths=0)
    axes.set(xlabel="clients, worst to best (%)", ylabel=_axis(headline, "a client"),
             title=series[0].score)  # fmt: skip
    _legend(axes, series)
    return figure


def _violins(series: Sequence[Series]) -> Figure:
    """Draw the distribution of scores over clients, a row for each method."""
    figure, axes = _axes(1.2 + 0.34 * len(series))
    headline = series[0].headline
    for number, each in enumerate(reversed(series)):
        values = np.array(list(each.scores.values()))
        colour = _look(len(series) - 1 - number)["color"]
        # The density of equal values cannot be estimated.
        if len(values) > 1 and np.ptp(values) > 1e-6:
            parts: dict[str, Any] = axes.violinplot(
                values, [number], orientation="horizontal", widths=0.85, showextrema=False
            )
            for body in parts["bodies"]:
                body.set(facecolor=colour, alpha=0.35)
        offsets = np.linspace(-0.25, 0.25, 7)[np.arange(len(values)) * 3 % 7]  # not on each other
        texts = [f"client {c}, {each.name}: {_told(headline, v)}" for c, v in each.scores.items()]
        _points(axes, values, number + offsets, texts, s=7, color=colour, linewidths=0)
        axes.plot([np.median(values)] * 2, [number - 0.4, number + 0.4], color=INK, lw=1.2)
    axes.set_yticks(range(len(series)), [each.name for each in reversed(series)])
    axes.set(xlabel=_axis(headline, "a client"), title=series[0].score)
    return figure


def _fairness(series: Sequence[Series]) -> Figure:
    """Draw the mean over clients against the mean of the worst tenth of them."""
    figure, axes = _axes(4.2)
    headline = series[0].headline
    for number, each in enumerate(series):
        mean, worst = (
            headline.shown(np.array(each.last(headline.key("test", statistic))))
            for statistic in ("mean", "worst_decile")
        )
        if not len(mean):
            continue
        spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in (mean, worst)]
        colour = _look(number)["color"]
        axes.errorbar(mean.mean(), worst.mean(), yerr=spread[1], xerr=spread[0], color=colour, lw=1)
        told = [_told(headline, values.mean()) for values in (mean, worst)]
        text = f"{each.name}: mean {told[0]}, worst decile {told[1]}"
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        _points(axes, [mean.mean()], [worst.mean()], [text], s=36, color=colour, marker=marker,
                label=each.name)  # fmt: skip
    # The diagonal, where all clients are equal, must not widen the axes.
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], ":", color=INK, lw=0.8, scaley=False, scalex=False)
    axes.set(xlabel=_axis(headline, "mean over clients"), title=series[0].score,
             ylabel=_axis(headline, "mean of the worst decile"))  # fmt: skip
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=4)
        figure.set_figheight(3.6 + 0.2 * (1 + len(series) // 4))
    return figure


def _gains(series: Sequence[Series], rival: str) -> Figure | None:
    """Draw by how much each client is better than a rival's.

    None without the rival, or with other partitions only.
    """
    rivals = [each for each in series if each.name == rival]
    others = [
        s for s in series if rivals and s not in rivals and s.partition == rivals[0].partition
    ]
    if not others:
        return None
    figure, axes = _axes(1.3 + 0.34 * len(others))
    headline, labels = series[0].headline, []
    unit = "percentage points" if headline.percent else headline.metric
    for number, each in enumerate(reversed(others)):
        clients, values = paired(each.scores, rivals[0].scores, headline)
        offsets = np.linspace(-0.28, 0.28, 7)[np.arange(len(values)) * 3 % 7]
        texts = [
            f"client {c}, {each.name}: {headline.text(v, sign='+')} {unit.split()[-1]}"
            for c, v in zip(clients, values, strict=True)
        ]
        colour = _look(series.index(each))["color"]
        _points(axes, values, number + offsets, texts, s=11, color=colour, alpha=0.75, linewidths=0)
        axes.plot([values.mean()] * 2, [number - 0.4, number + 0.4], color=INK, lw=1.6)
        # Scores are shares of a few examples: equal ones differ by rounding at most.
        won, lost = (values > 1e-9).sum(), (values < -1e-9).sum()
        mean = headline.text(values.mean(), sign="+")
        labels.append(f"{each.name}\n{mean}, {won} / {lost}")
    axes.set_yticks(range(len(others)), labels, fontsize=8.5)
    axes.axvline(0, color=INK, lw=0.8, ls=":")
    axes.set(xlabel=f"gain over {rival} ({unit}, a client)", title=series[0].score)
    figure.set_figheight(1.3 + 0.42 * len(others))
    return figure


def _alignment(series: Sequence[Series]) -> Figure | None:
    """Draw what was recorded of P and γ over rounds; None if nothing was."""
    recorded = [(each, rows) for each in series if (rows := _diagnostics(each))]
    if not recorded:
        return None
    figure = Figure(figsize=(5.8, 5.4 + 0.2 * (len(recorded) // 3)), layout="constrained")
    for axes, symbol in zip(figure.subplots(2, 1, sharex=True), ("P", "γ"), strict=True):
        for number, (each, rows) in enumerate(recorded[:SHOWN]):
            found = [(row["round"], *values) for row in rows if (values := _quantiles(row, symbol))]
            if not found:
                continue
            rounds, low, middle, high = zip(*found, strict=True)
            look = _look(number)
            axes.fill_between(rounds, low, high, color=look["color"], alpha=0.15, lw=0)
            axes.plot(rounds, middle, label=each.name if symbol == "P" else None, **look)
        axes.set(ylabel=f"{symbol} (no unit)", title=f"{symbol}: median and 5 % to 95 %")
    axes.set(xlabel="round")
    _legend(axes, recorded)
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


def _labels(series: Series) -> Figure | None:
    """Draw label counts of all clients below their scores; None where they are not known."""
    run = series.runs[0]
    if "label_counts" not in run.data:
        return None
    scores, headline = series.scores, series.headline
    counts = dict(zip(run.data["client_names"], run.data["label_counts"], strict=True))
    ranked = [client for client, _ in _worst_first(series) if client in counts]
    if not ranked:
        return None
    table = np.array([counts[client] for client in ranked])
    figure = Figure(figsize=(5.8, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    values = [scores[client] for client in ranked]
    told = (_told(headline, value) for value in values)
    texts = [f"client {c}: {text}, {counts[c]}" for c, text in zip(ranked, told, strict=True)]
    above.vlines(range(len(ranked)), 0, values, color=COLOURS[0], lw=1)
    _points(above, range(len(ranked)), values, texts, s=14, color=COLOURS[0], linewidths=0)
    above.set(ylabel=_axis(headline, "a client"), title=f"{series.score}, {series.name}")
    if headline.percent:
        above.set(ylim=(0, 105))
    clients, labels = np.nonzero(table)
    if max(table.shape) <= MANY:
        # In points; the largest bubble fills its cell.
        cell = min(5 * 72 / table.shape[0], 2.4 * 72 / table.shape[1])
        below.set(ylim=(-0.8, table.shape[1] - 0.2))
        at = zip(clients, labels, strict=True)
        texts = [f"client {ranked[k]}, label {c}: {table[k, c]}" for k, c in at]
        _points(below, clients, labels, texts, s=cell**2 * table[clients, labels] / table.max(),
                color=COLOURS[2], alpha=0.8, linewidths=0)  # fmt: skip
        below.set_title(f"examples (area; the largest is {table.max():,})")
    else:
        image = below.imshow(table.T, aspect="auto", interpolation="nearest", cmap="cividis",
                             origin="lower")  # fmt: skip
        figure.colorbar(image, ax=below, label="examples")
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    below.set(xlabel="client, worst to best", ylabel="label")
    return figure
