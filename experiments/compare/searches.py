"""How the step sizes of a comparison's methods did in their searches."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.compare.entries import Entry, ranked
from pflalign_jax.runs import files


class Search(NamedTuple):
    """The search of a method's step size.

    Attributes:
      method: its name.
      scores: step size to validation score of the first seed, as `Headline.shown`; None where
        training diverged.
      chosen: the step size chosen.
    """

    method: str
    scores: Mapping[float, float | None]
    chosen: float

    @property
    def at_edge(self) -> bool:
        """Whether a better step size may lie beyond those that were tried."""
        return len(self.scores) > 1 and self.chosen in (min(self.scores), max(self.scores))


def searches_of(entries: Sequence[Entry]) -> list[Search]:
    """Return the searches of a comparison's methods, the best on test data first."""
    return [Search(e.method, e.searched, e.learning_rate) for e in ranked(entries)]


def read_searches(root: pathlib.Path) -> list[Search]:
    """Return the searches that are in a comparison's directory, sorted by the methods' names.

    Trials that are not finished are left out.

    Raises:
      RunError: naming a file that cannot be read.
    """
    return [_read(method, paths) for method, paths in sorted(_searched(root).items())]


def _searched(root: pathlib.Path) -> dict[str, dict[float, pathlib.Path]]:
    """Return method to step size to the directory of its finished trial."""
    found: dict[str, dict[float, pathlib.Path]] = {}
    for place in (files.SEARCH, files.TRIALS):
        here: dict[str, dict[float, pathlib.Path]] = {}
        for path in filter(files.is_finished, (root / place).glob("*")):
            name = files.read_trial(path)
            if name.own is None and name.seed == 0:
                here.setdefault(name.method, {})[name.learning_rate] = path
        # What a shorter search chose was trained again, for all rounds: that is no search.
        found = here | found
    return found


def _read(method: str, paths: Mapping[float, pathlib.Path]) -> Search:
    """Return a method's search from its trials."""
    scores: dict[float, float | None] = {}
    merits: dict[float, float] = {}
    for rate, path in sorted(paths.items()):
        summary, headline = files.read_summary(path), files.read_headline(path)
        diverged = files.has_diverged(summary)
        score = None if diverged else summary["last"].get(headline.key("validation"))
        scores[rate] = None if score is None else headline.shown(score)
        merits[rate] = -math.inf if score is None else headline.merit(score)
    return Search(method, scores, max(merits, key=lambda rate: merits[rate]))
