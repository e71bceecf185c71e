"""What came of the methods of a comparison, from their trials' files."""

import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.compare.paired import Difference, difference
from experiments.compare.trials import OwnGrid, Trial
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.headline import PERSONAL, Headline
from pflalign_jax.runs.metrics import Row

RIVALS = ("local", "fedavg")
"""Whose adapted clients the others are compared with, client by client."""

SCORES = ("global", "personal/received", "personal/adapted")

RANKED_BY = f"{PERSONAL}/mean"
"""The score on test data by which methods are ordered."""


class Entry(NamedTuple):
    """A method's result.

    Attributes:
      method: its name.
      headline: the metric of all scores. Scores, and gains, are as it is shown: in percent where
        it is a share.
      learning_rate: the step size chosen.
      at_edge: whether it is the least or the largest that was tried.
      searched: step size to validation score, None where training diverged.
      own: the own hyperparameter's name, chosen value and values tried, as text; "" without.
      seeds: how many seeds of the chosen setting are in the scores.
      diverged: how many are not, as their training diverged.
      nonfinite: messages that were left out of all seeds' rounds, as they were not finite.
      adapted_with: step size of the last adaptation after the last round, of all seeds; empty
        where it is that of training.
      scores: ``model[/stage]/statistic`` to the values of all seeds, on test data.
      best_round: personal/adapted/mean of the round with the best validation score, of all seeds.
      clients: seed to client to its adapted test score.
      seconds: per round, the median over seeds.
      bytes_up, bytes_down: per round.
      partition_hash: of the data.
      validation: mean validation score of the chosen setting over those seeds.
      fields: fields of the config, by dotted name, of which the runs of the chosen setting have
        other values than the comparison's config; those of the first seed.
      runs: directories of these runs, but for those that diverged.
    """

    method: str
    headline: Headline
    learning_rate: float
    at_edge: bool
    searched: dict[float, float | None]
    own: str
    seeds: int
    diverged: int
    nonfinite: int
    adapted_with: list[float]
    scores: dict[str, list[float]]
    best_round: list[float]
    clients: dict[int, dict[str, float]]
    seconds: float
    bytes_up: int
    bytes_down: int
    partition_hash: str
    validation: float
    fields: dict[str, Any]
    runs: list[pathlib.Path]

    @property
    def merit(self) -> float:
        """Return what methods are ordered by, more is better; -inf without a trained model."""
        values = self.scores.get(RANKED_BY, [])
        return self.headline.merit(float(np.mean(values))) if values else -np.inf


def entry(
    method: str,
    best: Trial,
    searched: Sequence[Trial],
    tuned: OwnGrid | None,
    repeats: Sequence[Trial],
    fields: Mapping[str, Any],
) -> Entry:
    """Return the `Entry` of a method.

    Args:
      method: its name.
      best: the chosen trial.
      searched: the trials of its step sizes.
      tuned: what was tried of its own hyperparameter; None without.
      repeats: the trials of the chosen setting, one per seed.
      fields: as in `Entry`.
    """
    summaries = [files.read_summary(t.path) for t in repeats]
    pairs = zip(repeats, summaries, strict=True)
    trained = [trial for trial, summary in pairs if not files.has_diverged(summary)]
    whole = [summary for summary in summaries if not files.has_diverged(summary)]
    rows = [s["last"] for s in whole]
    counted = [row["clients/nonfinite"] for t in repeats for row in round_files.read_rows(t.path)]
    headline = files.read_headline(best.path)

    def validation_score(trial: Trial) -> float | None:
        return headline.shown(headline.merit(trial.merit)) if np.isfinite(trial.merit) else None

    finite = [score for trial in repeats if (score := validation_score(trial)) is not None]
    return Entry(
        method=method,
        headline=headline,
        learning_rate=best.learning_rate,
        at_edge=is_at_edge(best.learning_rate, [trial.learning_rate for trial in searched]),
        searched={trial.learning_rate: validation_score(trial) for trial in searched},
        own=_own(best, tuned),
        seeds=len(rows),
        diverged=len(summaries) - len(rows),
        nonfinite=round(sum(counted)),
        adapted_with=[row["adapt_learning_rate"] for row in rows if "adapt_learning_rate" in row],
        scores=scores_of(rows, headline),
        best_round=_known([s["best_validation"] or {} for s in whole], headline),
        clients={trial.seed: _clients(trial.path, headline) for trial in trained},
        seconds=float(np.median([row["seconds"] for row in rows])) if rows else float("nan"),
        bytes_up=rows[0]["bytes_up"] if rows else 0,
        bytes_down=rows[0]["bytes_down"] if rows else 0,
        partition_hash=whole[0]["dataset"]["partition_hash"] if whole else "",
        validation=float(np.mean(finite)) if finite else float("nan"),
        fields=dict(fields),
        runs=[trial.path for trial in trained],
    )


def _own(best: Trial, tuned: OwnGrid | None) -> str:
    """Return name, chosen value and values tried of a method's own hyperparameter as a text."""
    if tuned is None:
        return ""
    # As text: a default may be None, which is no number.
    known = sorted(value for value in (tuned.default, *tuned.values) if value is not None)
    chosen = tuned.default if best.own is None else best.own
    text = f"{tuned.field} {'none' if chosen is None else f'{chosen:g}'}"
    return f"{text}; {', '.join(f'{value:g}' for value in known)}"


def scores_of(rows: Sequence[Row], headline: Headline) -> dict[str, list[float]]:
    """Return ``model[/stage]/statistic`` to the test scores of all seeds."""
    scores = {}
    for name, statistic in itertools.product(SCORES, ("mean", "weighted", "worst_decile")):
        key = f"{headline.metric}/test/{name}/{statistic}"
        known = [headline.shown(row[key]) for row in rows if row.get(key) is not None]
        if len(known) == len(rows):  # not so of methods without a global model
            scores[f"{name}/{statistic}"] = known
    return scores


def _known(rows: Sequence[Row], headline: Headline) -> list[float]:
    """Return the headline on test data of the rows that have it."""
    found = (row.get(headline.key("test")) for row in rows)
    return [headline.shown(value) for value in found if value is not None]


def _clients(path: pathlib.Path, headline: Headline) -> dict[str, float]:
    """Return every client's adapted test score after a run; some metrics have none for some."""
    rows = round_files.last_scores(path, f"test/{PERSONAL}")
    found = {client: headline.shown(row.values[headline.metric]) for client, row in rows.items()}
    return {client: value for client, value in found.items() if np.isfinite(value)}


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries with the best on test data first."""
    return sorted(entries, key=lambda found: found.merit, reverse=True)


def gain(found: Entry, rival: Entry) -> Difference:
    """Return how much better a method's clients are than another's."""
    return difference(found.clients, rival.clients, found.headline)


def is_at_edge(chosen: float, tried: Collection[float]) -> bool:
    """Tell whether a better step size may lie beyond those that were tried."""
    return len(tried) > 1 and chosen in (min(tried), max(tried))


def rivals_of(entries: Sequence[Entry]) -> list[Entry]:
    """Return those of `RIVALS` that were compared, in their order."""
    return [found for name in RIVALS for found in entries if found.method == name]


def missing_rivals(entries: Sequence[Entry]) -> list[str]:
    """Return which of `RIVALS` a comparison lacks, without which its numbers say little."""
    return [name for name in RIVALS if name not in {e.method for e in entries}]


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds, NaN where there are too few."""
    mean = float(np.mean(values)) if values else np.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
