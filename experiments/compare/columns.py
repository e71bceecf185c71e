"""The columns of a leaderboard: their names, and what stands in them for readers and programs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.compare.entries import (
    RANKED_BY,
    RIVALS,
    SCORES,
    Entry,
    gain,
    moments,
    ranked,
    rivals_of,
)
from experiments.compare.paired import LEVEL, Difference
from pflalign_jax.cli.command import FlagError
from pflalign_jax.runs.config_checks import nearest
from pflalign_jax.runs.headline import Headline

UNCLEAR = "≈"
"""Marks what cannot be told from the best."""

EDGE = "†"
"""Marks a step size at the edge of those that were tried."""


class Column(NamedTuple):
    """A column of texts.

    Attributes:
      title: in ``leaderboard.md``.
      short: in a terminal.
      text: from an entry to its text.
    """

    title: str
    short: str
    text: Callable[[Entry], str]


def columns_of(entries: Sequence[Entry]) -> dict[str, Column]:
    """Return the columns of a comparison by their names, without those that say nothing in it."""
    first = ranked(entries)[0]
    found = {
        "method": Column("method", "method", lambda e: e.method),
        "step_size": Column("step size", "step size", _step_size),
        "grid": Column("tried", "tried", _grid),
        "own": Column("own; tried", "own; tried", lambda e: e.own),
        "adapted_with": Column("adapted with", "adapted with", _adapted_with),
        "seeds": Column("seeds", "seeds", _seeds),
        "validation": Column("validation", "validation", lambda e: e.headline.text(e.validation)),
    }
    for name in SCORES:
        short = name.removeprefix("personal/")
        found[short] = Column(name, short, _score(f"{name}/mean"))
    found["best_round"] = Column(
        "at the best round", "best round", lambda e: spread(e.best_round, e.headline)
    )
    found["worst_decile"] = Column(
        "worst decile", "worst decile", _score("personal/adapted/worst_decile")
    )
    found["to_best"] = Column(
        f"to the best ({LEVEL:.0%} interval)".replace("%", " %"), "to the best", _to(first)
    )
    for rival in rivals_of(entries):
        title = f"over {rival.method} (interval; won/lost)"
        found[f"over_{rival.method}"] = Column(title, f"over {rival.method}", _over(rival))
    found["bytes"] = Column(
        "MB up / down per round",
        "MB up / down",
        lambda e: f"{e.bytes_up / 1e6:.3g} / {e.bytes_down / 1e6:.3g}",
    )
    found["seconds"] = Column("s per round", "s per round", lambda e: f"{e.seconds:.3g}")
    # Nothing is said of it where every method adapts as it trains.
    if not any(e.adapted_with for e in entries):
        del found["adapted_with"]
    return found


NAMES = (
    *("step_size", "grid", "own", "adapted_with", "seeds", "validation", "global", "received"),
    *("adapted", "best_round", "worst_decile", "to_best"),
    *(f"over_{rival}" for rival in RIVALS),
    *("bytes", "seconds"),
)
"""Of all columns besides that of the method."""

SHORT = ("step_size", "adapted", "worst_decile", "to_best")
"""Names of those that a terminal shows."""


def chosen(given: Sequence[str] | None) -> list[str]:
    """Return the columns that ``--columns`` asks for; none if it is not given.

    Raises:
      FlagError: for a name that no column has.
    """
    if given == ["all"]:
        return list(NAMES)
    for name in given or ():
        if name not in NAMES:
            raise FlagError(f"--columns={name} is unknown{nearest(name, ('all', *NAMES))}")
    return list(dict.fromkeys(given or ()))


def shown_by_default(entries: Sequence[Entry]) -> list[str]:
    """Return `SHORT`, with the seeds where something went wrong in them."""
    trouble = any(e.diverged or e.nonfinite for e in entries)
    return [*SHORT, *["seeds"] * trouble]


def _step_size(found: Entry) -> str:
    return f"{found.learning_rate:g}{EDGE * found.at_edge}"


def _grid(found: Entry) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(found.searched))


def _adapted_with(found: Entry) -> str:
    return ", ".join(f"{rate:g}" for rate in found.adapted_with)


def _seeds(found: Entry) -> str:
    """Return how many seeds there are, and what went wrong in them."""
    text = str(found.seeds)
    if found.diverged:
        text += f" of {found.seeds + found.diverged}, others diverged"
    if found.nonfinite:
        text += f"; {found.nonfinite} messages not finite"
    return text


def _score(name: str) -> Callable[[Entry], str]:
    return lambda found: spread(found.scores.get(name, []), found.headline)


def spread(values: Sequence[float], headline: Headline) -> str:
    """Return mean ± standard deviation over seeds as they are shown; "" for no values."""
    mean, deviation = moments(values)
    text = headline.text(mean) if values else ""
    return text + (f" ± {headline.spread_text(deviation)}" if len(values) > 1 else "")


def _to(best: Entry) -> Callable[[Entry], str]:
    """Return what tells the difference to the best entry."""

    def text(found: Entry) -> str:
        if found is best:
            return ""
        to_best = gain(found, best)
        known = np.isfinite(to_best.mean)
        mark = f" {UNCLEAR}" if known and not to_best.is_clear else ""
        return _difference(to_best, found.headline, ")") + mark

    return text


def _over(rival: Entry) -> Callable[[Entry], str]:
    """Return what tells the difference to a rival."""

    def text(found: Entry) -> str:
        if found is rival:
            return ""
        over = gain(found, rival)
        return _difference(over, found.headline, f"; {over.won}/{over.lost})")

    return text


def _difference(of: Difference, headline: Headline, end: str) -> str:
    """Return a difference with its interval, which ``end`` closes; "" if it is not known."""
    if not np.isfinite(of.mean):
        return ""
    return f"{headline.text(of.mean, sign='+')} ({interval_text(of, headline)}{end}"


def interval_text(of: Difference, headline: Headline) -> str:
    """Return the interval of a difference, or why there is none."""
    if not np.isfinite(of.low):
        return "one client"
    return f"{headline.text(of.low, sign='+')} to {headline.text(of.high, sign='+')}"


def cells(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return the columns' titles, and a row of texts per entry, the best on test data first."""
    columns = columns_of(entries).values()
    rows = [[column.text(found) for column in columns] for found in ranked(entries)]
    return [column.title for column in columns], rows


def numbers(entries: Sequence[Entry]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns' titles and a row per entry for programs to read: all that is known.

    Scores that are shares are in percent, gains in percentage points; what is not known is empty.
    """
    names = list(dict.fromkeys(name for found in entries for name in found.scores))
    others = {"to_best": ranked(entries)[0]}
    others |= {f"over_{rival.method}": rival for rival in rivals_of(entries)}
    titles = [
        *("method", "metric", "learning_rate", "at_edge", "learning_rates", "searched"),
        *("own", "adapted_with", "seeds", "diverged", "nonfinite", "validation"),
        *(f"{n}/{of}" for n in [*names, "best_round/" + RANKED_BY] for of in ("mean", "std")),
        *(f"{n}/{of}" for n in others for of in ("mean", "low", "high", "won", "lost", "clear")),
        *("bytes_up", "bytes_down", "seconds", "partition_hash"),
    ]
    rows = []
    for found in ranked(entries):
        rates = sorted(found.searched)
        row = [
            *(found.method, found.headline.metric, found.learning_rate, found.at_edge, rates),
            [found.searched[rate] for rate in rates],
            *(found.own, found.adapted_with, found.seeds, found.diverged, found.nonfinite),
            found.validation,
        ]
        for values in [*(found.scores.get(name, []) for name in names), found.best_round]:
            row += moments(values)
        for other in others.values():
            of = None if found is other else gain(found, other)
            row += [""] * 6 if of is None else [*of[:5], of.is_clear]
        row += [found.bytes_up, found.bytes_down, found.seconds, found.partition_hash]
        rows.append(["" if isinstance(x, float) and not np.isfinite(x) else x for x in row])
    return titles, rows
