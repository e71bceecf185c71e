"""The pictures of a run, as PNG files."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import ClientScores

# Okabe and Ito's palette, safe for colour-blind readers.
COLOURS = {"global": "#000000", "personal/received": "#0072B2", "personal/adapted": "#D55E00"}
# The adapted line is thin, so that the received one stays visible where they are equal.
WIDTHS = {"global": 1.5, "personal/received": 3.5, "personal/adapted": 1.5}


def write_plots(
    directory: pathlib.Path,
    title: str,
    rows: list[dict[str, float]],
    scores: Mapping[str, ClientScores],
    dataset: FederatedDataset,
) -> None:
    """Write ``learning_curves``, ``clients`` and ``label_counts`` as PNG to ``directory``."""
    for name, figure in {
        "learning_curves": learning_curves(title, rows),
        "clients": client_distribution(title, scores),
        "label_counts": label_counts(dataset),
    }.items():
        FigureCanvasAgg(figure)
        figure.savefig(directory / f"{name}.png", dpi=150)


def learning_curves(title: str, rows: list[dict[str, float]]) -> Figure:
    """Draw mean accuracy over clients, and training loss, against rounds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    rounds = [row["round"] for row in rows]
    marker = "o" if len(rows) < 2 else None
    for model, colour in COLOURS.items():
        for split, style in (("test", "-"), ("validation", ":")):
            key = f"accuracy/{split}/{model}/mean"
            if key in rows[0]:
                values = [100 * row[key] for row in rows]
                label = f"{split}/{model}"
                accuracy.plot(
                    rounds,
                    values,
                    style,
                    color=colour,
                    linewidth=WIDTHS[model],
                    label=label,
                    marker=marker,
                )
    accuracy.set(xlabel="round", ylabel="accuracy, mean over clients (%)", title=title)
    accuracy.legend(fontsize="x-small")
    loss.plot(rounds, [row["loss/train/mean"] for row in rows], color="#009E73", marker=marker)
    for axes in (accuracy, loss):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set(xlabel="round", ylabel="loss (nats)", title="training loss of the round's cohort")
    return figure


def client_distribution(title: str, scores: Mapping[str, ClientScores]) -> Figure:
    """Draw the test accuracy of every client, sorted, for every model and stage."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for model, colour in COLOURS.items():
        score = scores.get(f"test/{model}")
        if score is None:
            continue
        values = np.sort(100 * score.accuracy[score.examples > 0])
        share = 100 * (np.arange(len(values)) + 0.5) / len(values)
        axes.step(
            share, values, where="mid", color=colour, linewidth=WIDTHS[model], label=f"test/{model}"
        )
    axes.set(
        xlabel="clients, worst to best (%)",
        ylabel="accuracy of a client (%)",
        title=f"{title}: clients in the last round",
    )
    axes.legend(fontsize="x-small")
    return figure


def label_counts(dataset: FederatedDataset) -> Figure:
    """Draw how many examples of each label each client has, all splits together."""
    counts = np.zeros((dataset.num_classes, dataset.num_clients))
    for owned in dataset.splits.values():
        clients = np.repeat(np.arange(dataset.num_clients), owned.sizes)
        np.add.at(counts, (dataset.y[owned.indices], clients), 1)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts, aspect="auto", interpolation="nearest", cmap="cividis")
    figure.colorbar(image, ax=axes, label="examples")
    axes.set(
        xlabel="client", ylabel="label", title=f"{dataset.name}: examples per label and client"
    )
    return figure
