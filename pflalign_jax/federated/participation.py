"""Who takes part in a round: whom the server invites, who answers, and how far they come.

All draws are keyed by run, purpose, round and client identity, so that who takes part depends
neither on the order in which clients are listed nor on devices, nor on what happened before.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.random_purposes import (
    AWAKE,
    DROPOUT,
    GROUP,
    OWN_CHANCE,
    OWN_SPEED,
    PHASE,
    SPEED,
)


class Turnout(NamedTuple):
    """Who came of one round.

    Attributes:
      cohort: ``[n]`` int64, positions of the clients whose answers count, ascending; may be empty.
      invited: how many were sent the model.
    """

    cohort: np.ndarray
    invited: int


class Participation(NamedTuple):
    """How a server finds the cohort of a round; from `uniform`, `weighted`, ...

    Attributes:
      draw: ``(key, round, client_ids [K], sizes [K], cohort_size) -> Turnout``; ``key`` is the
        run's key for cohorts, ``sizes`` are training examples.
      step_limit: ``(key, round, client_id) -> int32 scalar``, the most local steps that a client
        finishes in time; may be traced. None: all finish.
      sure: whether everybody who is invited takes part.
      amplifies: whether invitations are a uniform sample, which hides who is in it and is worth
        something to differential privacy.
    """

    draw: Callable[..., Turnout]
    step_limit: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None
    sure: bool
    amplifies: bool


def uniform(
    *,
    dropout: float = 0.0,
    over_selection: float = 1.0,
    slowness: float = 0.0,
    deadline: int | None = None,
) -> Participation:
    """Invite clients uniformly, without replacement.

    Args:
      dropout: probability that an invited client does not answer, in [0, 1].
      over_selection: how many times the cohort's size is invited, >= 1; the first answers count.
        A client answers after a time proportional to its examples and its slowness.
      slowness: standard deviation σ of the logarithm of a client's time per step, ``σ (a + b) /
        √2`` with a standard normal of the client and one of the client's round.
      deadline: local steps that a client of median speed finishes in time, >= 1. A slower one
        stops after ``deadline / time per step`` of them, at least one, and answers with what it
        has. None: there is no deadline.

    Raises:
      ValueError: for a value out of range.
    """
    return _participation(_uniform_rank, True, dropout, over_selection, slowness, deadline)


def weighted(
    *,
    dropout: float = 0.0,
    over_selection: float = 1.0,
    slowness: float = 0.0,
    deadline: int | None = None,
) -> Participation:
    """Invite clients without replacement, each draw in proportion to training examples.

    The mean message is weighted by examples as well.

    Args:
      dropout, over_selection, slowness, deadline: see `uniform`.

    References:
      Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006: the smallest of
      exponential draws ``-log(u) / weight``.
    """

    def rank(key, round_index, ids, sizes):
        u = (_uniform_rank(key, round_index, ids, sizes) + 0.5) / 2**32
        with np.errstate(divide="ignore"):
            return -np.log(u) / sizes

    return _participation(rank, False, dropout, over_selection, slowness, deadline)


def cyclic(
    groups: int = 4,
    *,
    dropout: float = 0.0,
    over_selection: float = 1.0,
    slowness: float = 0.0,
    deadline: int | None = None,
) -> Participation:
    """Let groups of clients take turns; inside the group of a round invite uniformly.

    Args:
      groups: G >= 1 groups, drawn once, of equal size up to one client. A group smaller than the
        cohort comes whole.
      dropout, over_selection, slowness, deadline: see `uniform`.

    References:
      Cho et al., "On the Convergence of Federated Averaging with Cyclic Client Participation",
      arXiv:2302.03109.
    """
    if groups < 1:
        raise ValueError(f"groups={groups!r} is not allowed; it must be >= 1")

    def rank(key, round_index, ids, sizes):
        own = _draw_integers(jax.random.fold_in(key, GROUP), ids)
        place = np.empty(len(ids), np.int64)
        place[np.lexsort((ids, own))] = np.arange(len(ids))
        turn = place % groups == round_index % groups
        return np.where(turn, _uniform_rank(key, round_index, ids, sizes), np.inf)

    return _participation(rank, False, dropout, over_selection, slowness, deadline)


def availability(
    low: float = 0.2,
    high: float = 1.0,
    period: int | None = None,
    *,
    dropout: float = 0.0,
    over_selection: float = 1.0,
    slowness: float = 0.0,
    deadline: int | None = None,
) -> Participation:
    """Invite uniformly among those clients that are available.

    Args:
      low: the least probability of a client to be available in a round, in [0, high]; each client
        has its own, drawn once and uniformly between ``low`` and ``high``.
      high: the greatest probability of a client to be available in a round, in [low, 1].
      period: rounds of a day: a client is never available in the half of it that is its night,
        which begins at a time of its own. None: there is no night.
      dropout, over_selection, slowness, deadline: see `uniform`.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low={low!r}, high={high!r} is not allowed; use 0 <= low <= high <= 1")
    if period is not None and period < 2:
        raise ValueError(f"period={period!r} is not allowed; it must be >= 2 rounds")

    def rank(key, round_index, ids, sizes):
        def share(key):
            return _draw_integers(key, ids) / 2**32

        chance = low + (high - low) * share(jax.random.fold_in(key, OWN_CHANCE))
        awake_key = jax.random.fold_in(jax.random.fold_in(key, AWAKE), round_index)
        available = share(awake_key) < chance
        if period is not None:
            phase = share(jax.random.fold_in(key, PHASE))
            available &= (round_index / period + phase) % 1 < 0.5
        return np.where(available, _uniform_rank(key, round_index, ids, sizes), np.inf)

    return _participation(rank, False, dropout, over_selection, slowness, deadline)


NAMES = ("uniform", "weighted", "cyclic", "availability")
"""What a config's ``participation.name`` can be."""


def _participation(rank, amplifies, dropout, over_selection, slowness, deadline):
    """Return the `Participation` that invites those of lowest ``rank`` (inf: cannot be)."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout={dropout!r} is not allowed; it must be in [0, 1]")
    if not 1 <= over_selection < math.inf:
        raise ValueError(f"over_selection={over_selection!r} is not allowed; it must be >= 1")
    if not 0 <= slowness < math.inf:
        raise ValueError(f"slowness={slowness!r} is not allowed; it must be >= 0")
    if deadline is not None and deadline < 1:
        raise ValueError(f"deadline={deadline!r} is not allowed; it must be >= 1 step")
    sure = rank is _uniform_rank and dropout == 0

    def draw(key, round_index, client_ids, sizes, cohort_size):
        num_clients = len(client_ids)
        if sure and cohort_size == num_clients:
            return Turnout(np.arange(num_clients), num_clients)
        ranks = rank(key, round_index, client_ids, sizes)
        # Rounded before it is rounded up: 10 * 1.1 is 11.000000000000002 in floats.
        wanted = min(math.ceil(round(cohort_size * over_selection, 6)), num_clients)
        invited = answered = np.sort(_smallest(ranks, client_ids, wanted))
        if dropout > 0:
            drop_key = jax.random.fold_in(jax.random.fold_in(key, DROPOUT), round_index)
            answered = invited[_draw_integers(drop_key, client_ids[invited]) / 2**32 >= dropout]
        if len(answered) > cohort_size:  # over-selection: the fastest are waited for
            ids = client_ids[answered]
            times = sizes[answered] * np.asarray(_times(key, round_index, ids, slowness), float)
            answered = np.sort(answered[_smallest(times, ids, cohort_size)])
        return Turnout(answered, len(invited))

    def step_limit(key, round_index, client_id):
        steps = jnp.floor(deadline / _time(key, round_index, client_id, slowness))
        return jnp.clip(steps, 1, 2**30).astype(jnp.int32)

    return Participation(draw, None if deadline is None else step_limit, sure, amplifies)


def _uniform_rank(key, round_index, ids, sizes):
    del sizes
    return _draw_integers(jax.random.fold_in(key, round_index), ids)


def _smallest(values, ids, count):
    """Return the positions of the ``count`` smallest finite values, ties to the lower id."""
    possible = np.flatnonzero(np.isfinite(values))
    # A partition first: sorting a million clients takes longer than a small round.
    if len(possible) > count:
        bound = np.partition(values[possible], count - 1)[count - 1]
        possible = possible[values[possible] <= bound]
    return possible[np.lexsort((ids[possible], values[possible]))[:count]]


def _draw_integers(key, ids):
    """Return ``[K]`` float64 whole numbers in ``0..2**32-1``, one draw for each client."""
    return np.asarray(_bits(key, ids)).astype(float)


@jax.jit
def _bits(key, client_ids):
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(client_ids)


def _time(key, round_index, client_id, slowness):
    """Return a client's time per step in a round; the median client's is 1."""
    own = jax.random.fold_in(jax.random.fold_in(key, OWN_SPEED), client_id)
    now = jax.random.fold_in(jax.random.fold_in(key, SPEED), round_index)
    now = jax.random.fold_in(now, client_id)
    return jnp.exp(slowness * (jax.random.normal(own) + jax.random.normal(now)) / math.sqrt(2))


_times = jax.jit(jax.vmap(_time, in_axes=(None, None, 0, None)))
