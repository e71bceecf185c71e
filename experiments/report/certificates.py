"""Certificates that `experiments.certify` has written: read again, and drawn."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pflalign_jax.runs.csv_cells import text_of
from pflalign_jax.runs.files import RunError

PLACE = pathlib.Path("certificates") / "certificates.csv"
"""The file in a run's directory."""

TEXTS = ("clients", "kind", "model", "split", "client")
"""Columns that are no numbers."""

# Okabe and Ito's palette, safe for colour-blind readers.
COLOURS = {
    ("pac_bayes", "received"): "#0072B2",
    ("pac_bayes", "adapted"): "#E69F00",
    ("pac_bayes", "laplace"): "#CC79A7",
    ("pac_bayes", "bound"): "#009E73",
    ("holdout", "adapted"): "#D55E00",
}
"""By kind and model."""

CAPTION = (
    "Every client's certificate (line: its error is below with probability 1 - δ) and its test "
    "error (dot), by certificate; the gap between them is what the certificate leaves open."
)

Row = dict[str, Any]


def read_certificates(workdir: pathlib.Path) -> list[Row]:
    """Return the rows of a run's certificates, numbers as floats; none if it has not been asked.

    Raises:
      RunError: naming the file, if it cannot be read.
    """
    path = workdir / PLACE
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {
                    name: text_of(text) if name in TEXTS else float(text)
                    for name, text in row.items()
                }
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}: {error}); ask for the certificates "
            "again with experiments.certify, or delete it"
        ) from error


def draw_certificates(title: str, rows: Sequence[Row]) -> Figure:
    """Draw certificate against test error for every client, sorted; a panel for each group.

    Args:
      title: of the run.
      rows: of `read_certificates`, not empty.
    """
    groups = [group for group in ("new", "train") if any(r["clients"] == group for r in rows)]
    # Below each other, so that a narrow page shows them whole.
    figure = Figure(figsize=(5, 4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        for (kind, model), colour in COLOURS.items():
            mine = [
                r for r in rows if (r["clients"], r["kind"], r["model"]) == (group, kind, model)
            ]
            if not mine:
                continue
            # Each certificate in its own order: curves that rise can be compared.
            mine.sort(key=lambda row: row["bound"])
            share = 100 * (np.arange(len(mine)) + 0.5) / len(mine)
            style = "-" if kind == "holdout" else "--"
            bounds, tests = ([row[name] for row in mine] for name in ("bound", "test"))
            axes.plot(share, bounds, style, color=colour, label=f"{kind}, {model}")
            axes.plot(share, tests, ".", color=colour, markersize=4)
        axes.set(
            xlabel="clients, by their certificate (%)",
            ylabel="error: certificate (line), test (dots)",
            title=f"{title}: {group} clients",
            ylim=(0, 1.02),
        )
        axes.legend(fontsize="x-small")
    return figure
