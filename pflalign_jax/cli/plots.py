"""The pictures of a run, as PNG files."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.queries import client_label_counts, has_labels
from pflalign_jax.federated import ClientScores
from pflalign_jax.runs.headline import Headline, headline_of
from pflalign_jax.runs.loop import Outcome
from pflalign_jax.runs.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers.
COLOURS = {"global": "#000000", "personal/received": "#0072B2", "personal/adapted": "#D55E00"}
# The adapted line is thin, so that the received one stays visible where they are equal.
WIDTHS = {"global": 1.5, "personal/received": 3.5, "personal/adapted": 1.5}


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of so many inches; loads Matplotlib, which takes half a second."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure as PNG, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    without_formulas(figure)
    figure.savefig(path, dpi=150)


def without_formulas(figure: Figure) -> None:
    """Show the dollar signs in names as they are: between two, Matplotlib would see a formula."""
    from matplotlib.text import Text

    # Numbers at ticks, which may be formulas of Matplotlib's own, are not there yet.
    for text in figure.findobj(Text):
        if "$" in text.get_text():
            text.set_parse_math(False)


def whole_numbers(*axes: Axis) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))


def write_plots(directory: pathlib.Path, outcome: Outcome) -> None:
    """Write ``learning_curves``, ``clients`` and `chart_of_y` of a run as PNG."""
    config, dataset = outcome.experiment.config, outcome.experiment.dataset
    title = f"{config.algorithm.name} on {dataset.name}"
    headline = headline_of(outcome.experiment.federation.task)
    figures = {
        "learning_curves": learning_curves(title, outcome.rows, headline),
        "clients": client_distribution(title, outcome.scores, headline),
        **chart_of_y(dataset),
    }
    for name, figure in figures.items():
        save_figure(figure, directory / f"{name}.png")


def learning_curves(title: str, rows: Sequence[Row], headline: Headline) -> Figure:
    """Draw the headline's mean over clients, and training loss, against rounds."""
    figure = new_figure((9, 3.6))
    score, loss = figure.subplots(1, 2)
    rounds = [row["round"] for row in rows]
    # A line of one point is not seen.
    marker = "o" if len(rows) < 2 else None
    for model, colour in COLOURS.items():
        for split, style in (("test", "-"), ("validation", ":")):
            key = f"{headline.metric}/{split}/{model}/mean"
            if any(row.get(key) is not None for row in rows):
                values = [_shown(headline, row.get(key)) for row in rows]
                label = f"{split}/{model}"
                score.plot(
                    rounds,
                    values,
                    style,
                    color=colour,
                    linewidth=WIDTHS[model],
                    label=label,
                    marker=marker,
                )
    score.set(xlabel="round", ylabel=_label(headline, "mean over clients"), title=title)
    if score.lines:
        score.legend(fontsize="x-small")
    loss.plot(rounds, [row["loss/train/mean"] for row in rows], color="#009E73", marker=marker)
    whole_numbers(score.xaxis, loss.xaxis)
    loss.set(xlabel="round", ylabel="loss", title="training loss of the round's cohort")
    return figure


def _shown(headline: Headline, value: float | None) -> float:
    """Return a score as it is shown; NaN, a gap in a line, where it is not finite."""
    return math.nan if value is None else headline.shown(value)


def _label(headline: Headline, whose: str) -> str:
    """Return the title of an axis."""
    return f"{headline.metric}, {whose}" + (f" ({headline.unit})" if headline.unit else "")


def client_distribution(
    title: str, scores: Mapping[str, ClientScores], headline: Headline
) -> Figure:
    """Draw every client's headline score on test data, sorted, for every model and stage."""
    figure = new_figure((6, 3.6))
    axes = figure.subplots()
    for model, colour in COLOURS.items():
        score = scores.get(f"test/{model}")
        if score is None:
            continue
        # Clients without test examples, or without a value of the metric, have no score.
        known = headline.shown(score.headline[np.isfinite(score.headline)])
        values = np.sort(known) if headline.higher_is_better else np.sort(known)[::-1]
        share = 100 * (np.arange(len(values)) + 0.5) / len(values)
        axes.step(
            share, values, where="mid", color=colour, linewidth=WIDTHS[model], label=f"test/{model}"
        )
    axes.set(
        xlabel="clients, worst to best (%)",
        ylabel=_label(headline, "a client"),
        title=f"{title}: clients in the last round",
    )
    axes.legend(fontsize="x-small")
    return figure


def write_partition(directory: pathlib.Path, dataset: FederatedDataset) -> None:
    """Write `chart_of_y`, ``client_sizes`` and, for images, ``examples`` as PNG."""
    figures = {**chart_of_y(dataset), "client_sizes": client_sizes(dataset)}
    if dataset.x.ndim == 4:
        figures["examples"] = example_images(dataset)
    for name, figure in figures.items():
        save_figure(figure, directory / f"{name}.png")


def chart_of_y(dataset: FederatedDataset) -> dict[str, Figure]:
    """Return the figure of the clients' ``label_counts``, or of their ``targets`` to predict."""
    if has_labels(dataset):
        return {"label_counts": label_count_chart(dataset)}
    return {"targets": target_chart(dataset)}


def target_chart(dataset: FederatedDataset) -> Figure:
    """Draw the median of every client's targets and the range from 5 % to 95 %, all splits.

    A panel for each of the first three targets; clients with the least median first.
    """
    y = dataset.y.reshape(len(dataset.y), -1)
    shown = min(y.shape[1], 3)
    owned = [
        np.concatenate([dataset.splits[split].of_client(k) for split in dataset.splits])
        for k in range(dataset.num_clients)
    ]
    figure = new_figure((7, 0.6 + 2.4 * shown))
    for j, axes in enumerate(figure.subplots(shown, 1, squeeze=False)[:, 0]):
        quantiles = np.array([np.quantile(y[indices, j], (0.05, 0.5, 0.95)) for indices in owned])
        low, middle, high = quantiles[np.argsort(quantiles[:, 1])].T
        axes.vlines(range(len(middle)), low, high, color="#0072B2", alpha=0.5)
        axes.plot(range(len(middle)), middle, ".", color="#0072B2")
        whole_numbers(axes.xaxis)
        name = "target" if y.shape[1] == 1 else f"target {j}"
        axes.set(xlabel="client, by its median", ylabel=name)
    figure.suptitle(f"{dataset.name}: median, and 5 % to 95 %, of each client", fontsize="medium")
    return figure


def label_count_chart(dataset: FederatedDataset) -> Figure:
    """Draw how many examples of each label each client has, all splits together.

    Up to 60 clients and labels as bubbles whose area is the count, more as an image.
    """
    counts = client_label_counts(dataset)
    figure = new_figure((7, 3.6))
    axes = figure.subplots()
    title = f"{dataset.name}: examples per label and client"
    if max(counts.shape) <= 60:
        clients, labels = np.nonzero(counts)
        # The largest bubble just fills its cell, in points squared.
        cell = min(7 * 72 * 0.85 / counts.shape[0], 3.6 * 72 * 0.7 / counts.shape[1])
        area = cell**2 * counts[clients, labels] / counts.max()
        axes.scatter(clients, labels, s=area, color="#0072B2", alpha=0.8, linewidths=0)
        axes.set(xlim=(-0.7, counts.shape[0] - 0.3), ylim=(-0.7, counts.shape[1] - 0.3))
        title += f" (area; the largest is {counts.max():,})"
    else:
        image = axes.imshow(counts.T, aspect="auto", interpolation="nearest", cmap="cividis",
                            origin="lower")  # fmt: skip
        figure.colorbar(image, ax=axes, label="examples")
    whole_numbers(axes.xaxis, axes.yaxis)
    axes.set(xlabel="client", ylabel="label", title=title)
    return figure


def client_sizes(dataset: FederatedDataset) -> Figure:
    """Draw the histogram of training examples per client."""
    figure = new_figure((6, 3.6))
    axes = figure.subplots()
    axes.hist(dataset.splits["train"].sizes, bins=min(40, dataset.num_clients), color="#0072B2")
    whole_numbers(axes.yaxis)
    axes.set(
        xlabel="training examples of a client", ylabel="clients", title=f"{dataset.name}: sizes"
    )
    return figure


def example_images(dataset: FederatedDataset, clients: int = 8, each: int = 10) -> Figure:
    """Draw the first training images of clients evenly spaced over all, as they are trained on."""
    chosen = np.unique(np.linspace(0, dataset.num_clients - 1, clients).astype(int))
    figure = new_figure((7, 0.75 * len(chosen) + 0.4))
    grid = figure.subplots(len(chosen), each, squeeze=False)
    owned = dataset.splits["train"]
    for row, k in zip(grid, chosen, strict=True):
        indices = owned.of_client(k)[:each]
        images = datasets.features_of(dataset, int(k), indices)
        # Features may be normalised: grey levels are stretched for each client alone.
        low, high = float(images.min()), float(images.max())
        for axes, image in itertools.zip_longest(row, images):
            axes.set(xticks=[], yticks=[], frame_on=image is not None)
            if image is not None:
                image = (image - low) / max(high - low, 1e-6)
                axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray")
        row[0].set_ylabel(str(dataset.client_names[k])[:12], fontsize="x-small")
    figure.suptitle(f"{dataset.name}: training images, a client per row", fontsize="medium")
    return figure
