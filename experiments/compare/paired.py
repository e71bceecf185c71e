"""Which differences between two methods are real: paired client by client, with an interval."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from pflalign_jax.runs.headline import Headline

LEVEL = 0.95
"""Of the intervals."""

DRAWS = 4000
"""Of clients, for an interval."""

AT_ONCE = 1_000_000
"""Clients drawn in one step: bounds the memory of many of them."""

FEW = 8
"""Clients below which the interval is Student's t: a bootstrapped mean never leaves their range."""

SAME = 1e-9
"""Scores are shares of a few examples: equal ones differ by rounding at most."""

SeedScores = Mapping[int, Mapping[str, float]]
"""Seed to client to its score, as `Headline.shown`."""


class Difference(NamedTuple):
    """How much better a method's clients are than another's, each the mean over seeds.

    Attributes:
      mean: over clients; NaN where no seed of both was trained to its end.
      low, high: interval of it at `LEVEL`; NaN with fewer than two clients.
      won, lost: how many clients are better and worse.
      agree: whether the mean over clients has the same sign with every seed.
    """

    mean: float
    low: float
    high: float
    won: int = 0
    lost: int = 0
    agree: bool = True

    @property
    def is_clear(self) -> bool:
        """Whether it can be told from zero: by its interval, and with every seed."""
        return (self.low > 0 or self.high < 0) and self.agree


UNKNOWN = Difference(math.nan, math.nan, math.nan)
"""Between methods of which one has no trained model."""


def over_seeds(scores: SeedScores) -> dict[str, float]:
    """Return every client's mean over the seeds."""
    clients: dict[str, list[float]] = {}
    for of_seed in scores.values():
        for client, score in of_seed.items():
            clients.setdefault(client, []).append(score)
    # NumPy's mean of a few numbers is ten times slower, and this is one for each of many clients.
    return {client: float(sum(values) / len(values)) for client, values in clients.items()}


def paired(
    found: Mapping[str, float], rival: Mapping[str, float], headline: Headline
) -> tuple[list[str], np.ndarray]:
    """Return the clients that both have scores of, and by how much the first one's is better."""
    common = sorted(found.keys() & rival.keys())
    return common, np.array([headline.merit(found[c] - rival[c]) for c in common])


def difference(found: SeedScores, rival: SeedScores, headline: Headline) -> Difference:
    """Return by how much a method is better than another, over the clients and seeds of both.

    Methods share partition, first models and order of examples of a seed, so that clients are
    paired seed by seed. See `interval` for what the interval says.

    Args:
      found, rival: the scores of both.
      headline: their metric.
    """
    common = sorted(found.keys() & rival.keys())
    # Only seeds that both have: others would be paired with different draws.
    found, rival = ({seed: of[seed] for seed in common} for of in (found, rival))
    _, values = paired(over_seeds(found), over_seeds(rival), headline)
    if not len(values):
        return UNKNOWN
    of_seeds = [paired(found[seed], rival[seed], headline)[1].mean() for seed in common]
    signs = {int(np.sign(mean)) for mean in of_seeds if abs(mean) > SAME}
    won, lost = int((values > SAME).sum()), int((values < -SAME).sum())
    return Difference(
        float(values.mean()), *_interval_of(tuple(values.tolist())), won, lost, len(signs) < 2
    )


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean over clients at `LEVEL`, by the bootstrap over clients.

    Clients are drawn again and again, with replacement. Seeds are strata: a client comes with its
    values of all seeds, each of which counts the same, and no seed is drawn. Clients are the same
    in all seeds: to draw them anew in each would take them for so many times as many. So the
    interval says what other clients would have changed, not what other seeds would.

    Quantiles are further out than the level's, as those of Student's t are than the normal's: few
    clients vary less than those that they stand for (Hesterberg, "What Teachers Should Know About
    the Bootstrap", 2015, section 5.3). With fewer clients than `FEW` it is the interval of
    Student's t.

    Args:
      values: ``[K]`` differences, each the mean over seeds.

    Returns:
      Its ends, the same whenever it is called; NaN with fewer than two clients.

    >>> interval([2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    outer = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    if count < FEW:
        half = outer * float(stats.sem(values))
        return float(values.mean() - half), float(values.mean() + half)
    rng = np.random.default_rng(0)
    step = max(1, AT_ONCE // count)
    means = np.concatenate(
        [
            values[rng.integers(count, size=(min(step, DRAWS - done), count))].mean(axis=1)
            for done in range(0, DRAWS, step)
        ]
    )
    tail = float(stats.norm.cdf(-outer * math.sqrt(count / (count - 1))))
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


# A leaderboard asks for every difference several times: in its tables, its file and its verdict.
_interval_of = functools.lru_cache(maxsize=512)(interval)
