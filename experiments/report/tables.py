"""The tables of a report: scores of one method, and clients; those of several: `methods`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.compare.columns import spread
from experiments.report.html import EMPTY, Cell, Content
from experiments.report.reported import Series, numeric_order
from pflalign_jax.cli import console
from pflalign_jax.runs.headline import Headline
from pflalign_jax.runs.intervals import wilson

FEW, MOST = 5, 10
"""The worst clients that a report shows by name, at least and at most."""


def of_one(series: Series) -> Content:
    """Return what the terminal shows of a run: a row for each split, model and stage.

    Columns are statistics over clients after the last round and, if that is another one, after the
    round that did best on validation.
    """
    headline, rounds = series.headline, series.best_rounds
    columns = [(f"last ({range_text(series.last_rounds)})", series.last)]
    if rounds and rounds != series.last_rounds:
        columns.append((f"best ({range_text(rounds)})", series.best))
    row = series.first.rows[-1]
    lacking = any(key.startswith(f"{headline.metric}/") and key.endswith("/without") for key in row)
    statistics = ["mean", "worst_decile", "weighted", "std"]
    # Where less is better it would be the best client.
    statistics += ["min"] * headline.higher_is_better
    titles = ["split / model / stage"]
    titles += [f"{of.replace('_', ' ')}, {when}" for of in statistics for when, _ in columns]
    titles += ["clients without a value"] * lacking
    rows = []
    for name in console.names(row, headline.metric):
        scores = f"{headline.metric}/{name}"
        cells = [Cell(name, name)]
        cells += [
            spread_cell(at(f"{scores}/{of}"), headline) for of in statistics for _, at in columns
        ]
        cells += [_plain(row.get(f"{scores}/without", 0))] * lacking
        rows.append(cells)
    return Content(titles, rows)


def worst_clients(series: Series) -> Content:
    """Return a tenth of a method's clients, `FEW` to `MOST`, the worst first.

    Where a score is a share of test examples that were right, it says of how many, and the interval
    in which so few leave a client's true score.
    """
    ranked = worst_first(series)
    shares = _are_shares(series)
    examples, headline = series.first.examples, series.headline
    unit = f" ({headline.unit})" if headline.unit else ""
    titles = ["client", f"{headline.metric}{unit}", "test examples"]
    if shares:
        titles += ["right"] * (len(series.runs) == 1) + [f"95 % interval{unit}"]
    rows = []
    for client, value in ranked[: min(MOST, max(FEW, round(len(ranked) / 10)))]:
        row = [Cell(client, client), Cell(headline.text(value), value), _plain(examples[client])]
        if shares:
            right = value / 100 * examples[client]
            row += [_plain(round(right))] * (len(series.runs) == 1)
            low, high = _interval(value, examples[client])
            row += [Cell(f"{low:.0f} to {high:.0f}", low)]
        rows.append(row)
    return Content(titles, rows)


def about_worst(series: Series) -> list[str]:
    """Return sentences on the worst client: what one example of its few is worth."""
    ranked = worst_first(series)
    if not ranked or not _are_shares(series):
        return []
    client, value = ranked[0]
    examples = series.first.examples[client]
    low, high = _interval(value, examples)
    some = f"{examples} test example{'s' * (examples > 1)}"
    one = len(series.runs) == 1
    return [
        f"Client {client} "
        + (f"got {round(value / 100 * examples)} of its {some} right" if one else f"has {some}")
        + f": one more or less is {100 / examples:.2g} points, and its true accuracy may be "
        f"anywhere from {low:.0f} to {high:.0f} % (95 % intervals are Wilson's)."
    ]


def of_clients(series: Sequence[Series]) -> Content:
    """Return a row for each client, in the order of their names, numbers as numbers."""
    scores, text = [each.scores for each in series], series[0].headline.text
    names = sorted({client for found in scores for client in found}, key=numeric_order)
    examples = {client: n for each in series for client, n in each.first.examples.items()}
    titles = ["client", "test examples", *(each.name for each in series)]
    rows = [
        [
            Cell(client, client),
            _plain(examples.get(client, "")),
            *(Cell(text(of[client]), of[client]) if client in of else EMPTY for of in scores),
        ]
        for client in names
    ]
    return Content(titles, rows)


def worst_first(series: Series) -> list[tuple[str, float]]:
    """Return clients and scores, the worst first, equal ones in the order of their names."""
    named = sorted(series.scores.items(), key=lambda item: numeric_order(item[0]))
    return sorted(named, key=lambda item: series.headline.merit(item[1]))


def traffic(series: Series) -> Cell:
    """Return what a round sends, in megabytes."""
    up, down = (series.last(f"bytes_{way}")[0] for way in ("up", "down"))
    return Cell(f"{up / 1e6:.3g} / {down / 1e6:.3g}", up + down)


def seconds(series: Series) -> Cell:
    """Return what a round takes at the end, the median over seeds."""
    value = float(np.median(series.last("seconds")))
    return Cell(f"{value:.3g}", value)


def range_text(numbers: Sequence[int]) -> str:
    """Return the least and the largest of numbers.

    >>> range_text([3]), range_text([5, 3, 4])
    ('3', '3 to 5')
    """
    return " to ".join(map(str, dict.fromkeys((min(numbers), max(numbers)))))


def _plain(value: Any) -> Cell:
    return Cell(f"{value:g}" if isinstance(value, int | float) else str(value), value)


def spread_cell(scores: Sequence[float], headline: Headline) -> Cell:
    """Return mean and standard deviation over seeds, as they are shown."""
    if not scores:
        return EMPTY
    values = [headline.shown(score) for score in scores]
    return Cell(spread(values, headline), float(np.mean(values)))


def _are_shares(series: Series) -> bool:
    """Tell whether every score says how many of a client's test examples were right.

    Not so of an accuracy of tokens: a client's examples are its texts.
    """
    if series.headline.metric != "accuracy" or not series.headline.percent:
        return False
    right = [
        (score / 100 * run.examples[client], run.examples[client])
        for run in series.runs
        for client, score in run.scores.items()
    ]
    # Scores are written with six digits.
    return all(abs(count - round(count)) <= 1e-5 * n for count, n in right)


def _interval(shown: float, examples: int) -> tuple[float, float]:
    """Return Wilson's interval of a score in percent."""
    low, high = wilson(min(1.0, shown / 100), examples)
    return 100 * low, 100 * high
