"""Runs that differ in their seeds, advanced together: their rounds are one vmapped program."""

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax

from pflalign_jax.federated import Federation, FederationState, RoundResult
from pflalign_jax.runs.hardware import room_on_devices
from pflalign_jax.runs.round_checks import DivergedError
from pflalign_jax.runs.signals import StoppedError

Wanted = tuple[FederationState, bool]
"""What a run waits for: a round from this state, with scores of the cohort's models or without."""

Done = tuple[FederationState, RoundResult, float] | None
"""What it gets: the next state, the round's result, and its seconds."""


def drive(runs: Sequence[Generator[Wanted, Done, Any]], federation: Federation) -> list[Any]:
    """Advance runs to their ends, all by a round at a time; one run is advanced plainly.

    A round's seconds are shared out. A run that diverges leaves the others alone.

    Args:
      runs: from `pflalign_jax.runs.loop.rounds`, just made, of one config but for the seed, and as
        far as each other.
      federation: of one of them.

    Returns:
      What each returned, or the `DivergedError` or `StoppedError` that ended it.

    Raises:
      MemoryExhaustedError: when a device has no room; as whatever else a run raises, it closes
        all runs, which go on from their checkpoints another time.
    """
    ends: list[Any] = [None] * len(runs)
    waiting: dict[int, Wanted] = {}

    def advance(i, done):
        try:
            waiting[i] = runs[i].send(done)
        except StopIteration as end:
            ends[i] = end.value
        except (DivergedError, StoppedError) as error:
            ends[i] = error

    with contextlib.ExitStack() as stack:
        for i, run in enumerate(runs):
            stack.callback(run.close)
            advance(i, None)
        while waiting:
            numbers, (states, scores) = list(waiting), zip(*waiting.values(), strict=True)
            waiting.clear()
            clock = time.perf_counter()
            with room_on_devices(federation.client_chunk):
                results = federation.run_rounds(states, scores[0])
                jax.block_until_ready([result.metrics for _, result in results])
            seconds = (time.perf_counter() - clock) / len(results)
            for i, result in zip(numbers, results, strict=True):
                advance(i, (*result, seconds))
    return ends
