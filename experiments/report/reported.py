"""What a report knows of runs."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.compare.paired import over_seeds
from pflalign_jax.runs.headline import PERSONAL, Headline
from pflalign_jax.runs.metrics import Row, best_on_validation

SCORE = f"test/{PERSONAL}"
"""The score that figures show, of every client; its metric is the runs' headline."""


class Searched(NamedTuple):
    """What a comparison tried before it chose a run's setting.

    Attributes:
      rates: step size to its score on validation, as `Headline.shown`; None where it diverged.
      field: the method's own hyperparameter; None: only its default was tried.
      own: the values of it that were tried, ascending.
      diverged: seeds of the chosen setting whose training diverged.
    """

    rates: dict[float, float | None]
    field: str | None
    own: list[float]
    diverged: int


class ReportedRun(NamedTuple):
    """A run that has been evaluated at least once.

    Attributes:
      name: of the method.
      path: its directory.
      config: as in ``config.json``.
      summary: as in ``summary.json``; None while it is not finished.
      rows: of ``metrics.jsonl``.
      headline: metric by which it is scored.
      scores: client to its `SCORE` after the last evaluated round, as `Headline.shown`.
      examples: client to its number of test examples.
      diagnostics: rows of ``diagnostics.jsonl``.
      data: as in ``data.json``.
      searched: for a run of a comparison.
    """

    name: str
    path: pathlib.Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    rows: list[dict[str, float]]
    headline: Headline
    scores: dict[str, float]
    examples: dict[str, int]
    diagnostics: list[dict[str, float]]
    data: dict[str, Any]
    searched: Searched | None = None

    @property
    def best(self) -> Row | None:
        """Return the row of the round that did best on validation; None without such a split."""
        return best_on_validation(self.rows, self.headline)

    def class_names(self, count: int) -> list[str]:
        """Return the names of the first ``count`` labels: numbers where the data have none."""
        named = self.data.get("class_names", [])
        return named if len(named) == count else [str(label) for label in range(count)]


class Series(NamedTuple):
    """Runs that differ in their seeds only."""

    name: str
    runs: list[ReportedRun]

    @property
    def scores(self) -> dict[str, float]:
        """Return ``{client: SCORE}``, the mean over seeds."""
        return over_seeds(dict(enumerate(run.scores for run in self.runs)))

    @property
    def headline(self) -> Headline:
        """Return the metric by which the runs are scored."""
        return self.runs[0].headline

    @property
    def score(self) -> str:
        """Return the name of the headline score, without a statistic."""
        return f"{self.headline.metric}/{SCORE}"

    @property
    def partition(self) -> str:
        """Return the hash of the partition."""
        return self.runs[0].data.get("partition_hash", "")

    @property
    def first(self) -> ReportedRun:
        """Return the run of the first seed."""
        return self.runs[0]

    @property
    def best_rounds(self) -> list[int]:
        """Return the rounds that did best on validation, of all seeds that have one."""
        return [int(run.best["round"]) for run in self.runs if run.best is not None]

    @property
    def last_rounds(self) -> list[int]:
        """Return the last rounds that were evaluated, of all seeds."""
        return [int(run.rows[-1]["round"]) for run in self.runs]

    def last(self, key: str) -> list[float]:
        """Return a metric of the last row, one value per seed, without those that lack it."""
        return _known([run.rows[-1] for run in self.runs], key)

    def best(self, key: str) -> list[float]:
        """Return a metric of the round that did best on validation, as `last` does."""
        return _known([run.best or {} for run in self.runs], key)

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(rounds [T], values [S, T])`` of a metric where all seeds were evaluated."""
        found = [{row["round"]: row.get(key) for row in run.rows} for run in self.runs]
        rounds = sorted(set.intersection(*(set(rows) for rows in found)))
        values = [[rows[done] for done in rounds] for rows in found]
        return np.array(rounds), np.array(values, float)  # None becomes NaN


def _known(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def numeric_order(name: str) -> list[Any]:
    """Return what names are sorted by, so that numbers in them count as numbers.

    >>> sorted(["10", "2", "b", "a12", "a3"], key=numeric_order)
    ['2', '10', 'a3', 'a12', 'b']
    """
    parts = re.split("([0-9]+)", name)  # every other one is a number, of any length
    kept = [part.lstrip("0") for part in parts]
    return [(len(kept[i]), kept[i]) if i % 2 else part for i, part in enumerate(parts)]
