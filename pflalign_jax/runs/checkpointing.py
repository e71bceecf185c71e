"""When a run saves a checkpoint, and which: the latest ones and the best on validation."""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from pflalign_jax.federated import Federation
from pflalign_jax.runs.checkpoints import open_checkpoints

SHARE = 0.03
"""Of a run's time that checkpoints may take where the config leaves it open how often."""

PAUSE = 10.0
"""Seconds between checkpoints, at least, likewise."""

SMALL = 2**30
"""Bytes of a state that is copied in memory until the next checkpoint, if it is the best."""


class Keeper(NamedTuple):
    """Saves checkpoints of a run.

    Attributes:
      after_round: ``(state, score, about, now=False) -> None``; ``score`` is the validation
        headline, None if the round was not evaluated; ``about()`` is what else to save. ``now``
        saves in any case.
      wait: until what was saved is whole.
      close: likewise, for good.
    """

    after_round: Callable[..., None]
    wait: Callable[[], object]
    close: Callable[[], object]


KEEPS_NOTHING = Keeper(lambda *_: None, lambda: None, lambda: None)


def keep_checkpoints(
    directory: str | os.PathLike,
    federation: Federation,
    every: int | None,
    kept: int,
    best: float | None,
) -> Keeper:
    """Return what saves a run's checkpoints.

    With ``every`` there is one every so many rounds and one at every round that is the best so far
    on validation. Without, the pace is set by the clock: one at most every `PAUSE` seconds, and so
    seldom that they take less than `SHARE` of the time; the best state so far is copied in memory
    and written before the next one. So any checkpoint finds the best before it on disk.

    Args:
      directory: of the checkpoints.
      federation: whose states are saved.
      every: rounds, or None.
      kept: how many to keep beside the best.
      best: score of the best round so far, of a run that goes on.
    """
    checkpoints = open_checkpoints(directory, kept)
    rounds, pending = set(checkpoints.wait()), None
    highest = -np.inf if best is None else best
    cost, last = 0.3, time.monotonic()
    began: float | None = None

    def write(saved, about, score):
        nonlocal rounds, began, last
        start = time.monotonic()
        rounds = {*checkpoints.wait(), saved.round}
        checkpoints.save(saved, about, score)
        began, last = start, time.monotonic()

    def after_round(state, score, about, now=False):
        nonlocal highest, pending, cost, began
        if began is not None and not checkpoints.busy():
            cost, began = time.monotonic() - began, None
        best_yet = score is not None and score > highest
        due = now or (
            int(state.round) % every == 0
            if every
            else began is None and time.monotonic() - last > max(PAUSE, cost / SHARE)
        )
        best_yet, due = together(best_yet, due)
        if not best_yet and not due:
            return
        saved, of = federation.save(state), about()
        if best_yet:
            highest, pending = score, None
            if not due and not every and _can_wait(saved):
                pending = _copied(saved), of, score
        if pending is None or due:
            if pending is not None:
                write(*pending)
                pending = None
            write(saved, of, score)
        federation.hold(rounds | ({pending[0].round} if pending else set()))

    return Keeper(after_round, checkpoints.wait, checkpoints.close)


def together(*numbers: int) -> tuple[int, ...]:
    """Return the largest of all processes' numbers, so that all of them do the same."""
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    return tuple(multihost_utils.process_allgather(np.array(numbers, np.int32)).max(0).tolist())


def _can_wait(saved):
    return jax.process_count() == 1 and sum(a.nbytes for a in _arrays(saved)) <= SMALL


def _copied(saved):
    server, clients = jax.tree.map(np.array, (saved.server, saved.clients))
    return saved._replace(key=np.array(saved.key), server=server, clients=clients)


def _arrays(saved):
    return jax.tree.leaves((saved.server, saved.clients))
