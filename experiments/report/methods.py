"""The table of several methods: the columns of a comparison's leaderboard."""

import re
from collections.abc import Sequence

import numpy as np

from experiments.compare.columns import EDGE, UNCLEAR, cells
from experiments.compare.entries import Entry, is_at_edge, scores_of
from experiments.compare.verdict import standings_of, verdict
from experiments.report.html import EMPTY, Cell, Content
from experiments.report.reported import Series
from pflalign_jax.runs.headline import PERSONAL

FIRST = ("method", PERSONAL, "worst decile", "to the best", "over ")
"""How the titles begin of what a narrow page shows."""

LAST = ("step size", "tried", "own", "adapted with")
"""How the titles begin of what is not measured."""


def of_methods(series: Sequence[Series]) -> Content:
    """Return a row for each method, with the columns of a comparison's ``leaderboard.md``.

    Columns that say nothing of any method are left out.
    """
    titles, rows = cells([entry_of(each) for each in series])
    table = [[_cell(text) for text in row] for row in rows]
    order = sorted(range(len(titles)), key=lambda column: _place(titles[column]))
    order = [column for column in order if any(row[column] != EMPTY for row in table)]
    return Content([titles[i] for i in order], [[row[i] for i in order] for row in table])


def who_wins(series: Sequence[Series]) -> str:
    """Return what may be said of the methods, and what marks in their table mean."""
    entries = [entry_of(each) for each in series]
    said = verdict(standings_of(entries), series[0].headline).replace("`", "")
    marks = {
        UNCLEAR: "cannot be told from the best: its interval over clients has 0 in it, or seeds "
        "disagree",
        EDGE: "is at the edge of what was tried",
    }
    texts = [text for row in cells(entries)[1] for text in row]
    known = [mark for mark in marks if any(text.endswith(mark) for text in texts)]
    return " ".join([said, *(f"{mark} {marks[mark]}." for mark in known)])


def _place(title: str) -> int:
    """Return where a column stands among the others, which keep their order."""
    if title.startswith(LAST):
        return len(FIRST) + 1
    places = (place for place, begin in enumerate(FIRST) if title.startswith(begin))
    return next(places, len(FIRST))


def _cell(text: str) -> Cell:
    """Return a cell that is sorted by the number with which its text begins, if there is one."""
    if text.lstrip("+-").startswith("nan"):  # it is not known
        return EMPTY
    number = re.match(r"[-+]?\d+(\.\d+)?(e[-+]\d+)?", text)
    return Cell(text, float(number[0]) if number else text)


def entry_of(series: Series) -> Entry:
    """Return the entry of a method in a leaderboard, which needs no comparison."""
    first, headline, searched = series.first, series.headline, series.first.searched
    rate = first.config["algorithm"].get("learning_rate")
    rate = float(rate) if isinstance(rate, int | float) else np.nan
    rates = searched.rates if searched else {}
    own = ""
    if searched and searched.field:
        value = first.config["algorithm"].get(searched.field)
        chosen = f"{value:g}" if isinstance(value, int | float) else "none"
        own = f"{searched.field} {chosen}; {', '.join(f'{tried:g}' for tried in searched.own)}"
    validation = series.last(headline.key("validation"))
    up, down = (round(series.last(f"bytes_{way}")[0]) for way in ("up", "down"))
    return Entry(
        method=series.name,
        headline=headline,
        learning_rate=rate,
        at_edge=is_at_edge(rate, rates),
        searched=rates,
        own=own,
        seeds=len(series.runs),
        diverged=searched.diverged if searched else 0,
        nonfinite=round(sum(r.get("clients/nonfinite", 0) for s in series.runs for r in s.rows)),
        adapted_with=series.last("adapt_learning_rate"),
        scores=scores_of([run.rows[-1] for run in series.runs], headline),
        best_round=[headline.shown(value) for value in series.best(headline.key("test"))],
        # Clients of different partitions are others, whatever their names.
        clients={
            run.config["seed"]: {f"{series.partition} {name}": x for name, x in run.scores.items()}
            for run in series.runs
        },
        seconds=float(np.median(series.last("seconds"))),
        bytes_up=up,
        bytes_down=down,
        partition_hash=series.partition,
        validation=headline.shown(float(np.mean(validation))) if validation else np.nan,
        fields={},
        runs=[run.path for run in series.runs],
    )
