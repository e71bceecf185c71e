"""When a run saves a checkpoint, and which: the latest ones and the best on validation."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pflalign_jax.federated import Federation, FederationState
from pflalign_jax.federated.snapshot import Snapshot
from pflalign_jax.runs.checkpoints import Checkpoints, open_checkpoints
from pflalign_jax.runs.processes import agree

SHARE = 0.03
"""Of a run's time that checkpoints may take where the config leaves it open how often."""

PAUSE = 10.0
"""Seconds between checkpoints, at least, likewise."""

SMALL = 2**30
"""Bytes of a state that is copied in memory until the next checkpoint, if it is the best."""

FIRST_COST = 0.3
"""Seconds that a checkpoint is thought to take before one was written."""


class _Unwritten(NamedTuple):
    """The best state so far, copied in memory until a checkpoint is due."""

    saved: Snapshot
    about: dict[str, Any]
    score: float


@dataclasses.dataclass
class Checkpointing:
    """Saves checkpoints of a run; see `start_checkpointing`.

    Attributes:
      checkpoints: where they are written.
      federation: whose states are saved.
      every: rounds between two, or None: by the clock.
      highest: the best merit so far.
      on_disk: rounds that have a checkpoint.
      unwritten: the best state so far, if it is not on disk yet.
      cost: seconds that the last checkpoint took.
      last: when the last one was begun, on the monotonic clock.
      began: when the one that is still being written was begun; None if none is.
    """

    checkpoints: Checkpoints
    federation: Federation
    every: int | None
    highest: float
    on_disk: set[int]
    unwritten: _Unwritten | None = None
    cost: float = FIRST_COST
    last: float = dataclasses.field(default_factory=time.monotonic)
    began: float | None = None

    def after_round(
        self,
        state: FederationState,
        score: float | None,
        about: Callable[[], dict[str, Any]],
        now: bool = False,
    ) -> None:
        """Save what is to be saved after a round.

        Args:
          state: after the round.
          score: its merit, the validation headline such that more is better (`Headline.merit`);
            None if the round was not evaluated.
          about: returns what else belongs to a checkpoint, as json.
          now: save in any case.
        """
        if self.began is not None and not self.checkpoints.busy():
            self.cost, self.began = time.monotonic() - self.began, None
        # Clocks differ, and with them what processes would do: if one saves, all do.
        is_best, due = agree(score is not None and score > self.highest, now or self._due(state))
        if not is_best and not due:
            return
        saved, more = self.federation.save(state), about()
        if is_best:
            assert score is not None
            self.highest, self.unwritten = score, None
            if not due and not self.every and _may_wait(saved):
                self.unwritten = _Unwritten(_copied(saved), more, score)
        if self.unwritten is None or due:
            if self.unwritten is not None:
                self._write(*self.unwritten)
                self.unwritten = None
            self._write(saved, more, score)
        # Client states on disk move on with every round: those of these rounds must not.
        wanted = {self.unwritten.saved.round} if self.unwritten else set()
        self.federation.hold(self.on_disk | wanted)

    def wait(self) -> None:
        """Wait until what was saved is whole."""
        self.checkpoints.wait()

    def close(self) -> None:
        """Wait likewise, and save no more."""
        self.checkpoints.close()

    def _due(self, state: FederationState) -> bool:
        if self.every:
            return int(state.round) % self.every == 0
        pause = max(PAUSE, self.cost / SHARE)
        return self.began is None and time.monotonic() - self.last > pause

    def _write(self, saved: Snapshot, about: dict[str, Any], score: float | None) -> None:
        start = time.monotonic()
        self.on_disk = {*self.checkpoints.wait(), saved.round}
        self.checkpoints.save(saved, about, score)
        self.began, self.last = start, time.monotonic()


def start_checkpointing(
    directory: str | os.PathLike,
    federation: Federation,
    every: int | None,
    kept: int,
    best: float | None,
) -> Checkpointing:
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
      best: merit of the best round so far, of a run that goes on.
    """
    checkpoints = open_checkpoints(directory, kept)
    highest = -np.inf if best is None else best
    return Checkpointing(checkpoints, federation, every, highest, set(checkpoints.wait()))


def _may_wait(saved: Snapshot) -> bool:
    return jax.process_count() == 1 and sum(a.nbytes for a in _arrays(saved)) <= SMALL


def _copied(saved: Snapshot) -> Snapshot:
    """Return a snapshot that keeps nothing on devices: the next round donates their buffers."""
    server, clients = jax.tree.map(np.array, (saved.server, saved.clients))
    return saved._replace(key=np.array(saved.key), server=server, clients=clients)


def _arrays(saved: Snapshot) -> list[Any]:
    return jax.tree.leaves((saved.server, saved.clients))
