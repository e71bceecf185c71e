"""Which figures a report has, and what is said below them."""

import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.compare.entries import RIVALS
from experiments.compare.pictures import draw_searches, searches_of
from experiments.report import client_figures, curve_figures, methods
from experiments.report.certificates import CAPTION, draw_certificates, read_certificates
from experiments.report.reported import Series

SHOWN = 10
"""Methods in a figure with a line for each; a page's table has all."""

TITLES = {"local": "local training", "fedavg": "FedAvg fine-tuned by each client"}
"""How captions name `RIVALS`."""

Captioned = tuple[Figure, str]


def figures(series: Sequence[Series]) -> dict[str, Captioned]:
    """Return ``{name: (figure, caption)}``, those for which something was recorded."""
    some = shown(series)
    fewer = (
        f" The {len(some)} of {len(series)} methods shown: pFLAlign, local training, FedAvg and "
        "the best of the others."
        if len(some) < len(series)
        else ""
    )
    made = _of_rounds(series, some, fewer) | _of_clients(series, some, fewer)
    searches = searches_of([methods.entry_of(each) for each in some])
    searches = [s for s in searches if len(s.scores) > 1 and s.chosen in s.scores]
    if searches:
        made["searches"] = (
            draw_searches(searches, series[0].headline, most=2),
            f"How step sizes were chosen: {series[0].headline.key('validation')} against the step "
            f"size, with the first seed.{fewer}",
        )
    alignment = curve_figures.alignment(series, SHOWN)
    if alignment is not None:
        made["alignment"] = (
            alignment,
            "What was recorded of the preconditioner P over its coordinates, and of the weights γ "
            "over the cohort: median, and the band from 5 % to 95 %.",
        )
    labels = client_figures.labels(series[0])
    if labels is not None:
        made["labels"] = (
            labels,
            "Examples of each label in each client, all splits, below its "
            f"{series[0].headline.metric} with {series[0].name}; the worst client first. Point at "
            "a dot to see the client.",
        )
    for number, each in enumerate(some):
        rows = read_certificates(each.first.path)
        if rows:
            made[f"certificates_{number}"] = (draw_certificates(each.name, rows), CAPTION)
    return made


def shown(series: Sequence[Series]) -> list[Series]:
    """Return the series that line figures show: at most `SHOWN`, in their order."""
    first = [s for s in series if s.name in ("pflalign", *RIVALS)]
    rest = [s for s in series if s not in first][: max(0, SHOWN - len(first))]
    return [s for s in series if s in first or s in rest]


def _of_rounds(
    series: Sequence[Series], some: Sequence[Series], fewer: str
) -> dict[str, Captioned]:
    headline = series[0].headline
    metric = re.sub(r"[^\w-]", "_", headline.metric)  # names of figures are names of files
    seeds = max(len(each.runs) for each in series)
    band = "; the band is the standard deviation over seeds" if seeds > 1 else ""
    first = " The first seed." if seeds > 1 else ""
    if len(series) == 1:
        curves = curve_figures.curves_of_one(series[0])
        ring = " The ring is the round that did best on validation."
        caption = (
            f"The {headline.metric} of the global model, and of clients' own models as they are "
            f"received and after their local steps{band}."
            f"{ring if curve_figures.has_ring(series[0]) else ''}"
        )
    else:
        curves = curve_figures.scores(some)
        caption = (
            f"Test {headline.metric} of every client's model after its local steps{band}.{fewer}"
        )
    return {
        "learning_curves": (curves, caption),
        "training_loss": (
            curve_figures.losses(some),
            f"Training loss of the round's cohort{band}.{fewer}",
        ),
        f"{metric}_against_bytes": (
            curve_figures.against(
                some, ("bytes_up", "bytes_down"), 1e6, "sent in both directions so far (MB)"
            ),
            f"What communication buys.{first}{fewer}",
        ),
        f"{metric}_against_seconds": (
            curve_figures.against(some, ("seconds",), 1.0, "time of training so far (s)"),
            "What time buys on the machine that ran it, without evaluations and compilation."
            f"{first}{fewer}",
        ),
    }


def _of_clients(
    series: Sequence[Series], some: Sequence[Series], fewer: str
) -> dict[str, Captioned]:
    over = " (mean over seeds)" if max(len(each.runs) for each in series) > 1 else ""
    made = {
        "clients_sorted": (
            client_figures.sorted_clients(some),
            f"Every client's {series[0].headline.metric}{over}, worst to best.{fewer} Point at "
            "a dot to see the client.",
        ),
        "clients_violin": (
            client_figures.violins(some),
            f"The same distribution: a dot is a client, the line the median.{fewer}",
        ),
    }
    if len(series) > 1:  # of one method the table says it
        figure, line = client_figures.fairness(series)
        made["fairness"] = (
            figure,
            "The mean over clients against the mean of the worst tenth of them, after the last "
            "round; crosses are standard deviations over seeds."
            + " On the dotted line all clients are equal."
            * line,
        )
    for rival in RIVALS:
        gains = client_figures.gains(some, rival)
        if gains is not None:
            made[f"gain_over_{rival}"] = (
                gains,
                f"For every client the difference to {TITLES[rival]}: a dot is a client, the line "
                "the mean; beside the name the mean, and clients won / lost. On the dotted line "
                f"there is no difference.{fewer}",
            )
    return made
