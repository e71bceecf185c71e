"""Runs that differ in their seeds, advanced together: their rounds are one vmapped program."""

import contextlib
from collections.abc import Sequence

from pflalign_jax.runs.loop import Outcome, RunPlan, in_progress, timed_rounds, train
from pflalign_jax.runs.round_checks import DivergedError
from pflalign_jax.runs.signals import StoppedError

End = Outcome | DivergedError | StoppedError
"""How a run ends; other errors end all runs."""


def train_together(plans: Sequence[RunPlan]) -> list[End]:
    """Advance runs to their ends, all by a round at a time; a single one as `train` does.

    A run that diverges or is stopped leaves the others alone.

    Args:
      plans: new runs of one config but for the seed, all after the same number of rounds.

    Returns:
      What came of each, or the error that ended it.

    Raises:
      MemoryExhaustedError: when a device has no room; as after whatever else a run raises, all
        runs go on from their checkpoints another time.
    """
    if len(plans) == 1:
        try:
            return [train(plans[0])]
        except (DivergedError, StoppedError) as error:
            return [error]
    ends: dict[int, End] = {}
    rounds = plans[0].experiment.config.rounds
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(in_progress(plan)) for plan in plans]
        going = {i: run.first() for i, run in enumerate(runs)}
        # All are after the same round, so that one program serves them in step.
        for _ in range(going[0].done, rounds):
            if not going:
                break
            lead = next(iter(going))  # any of them: programs and settings are the same
            results, seconds = timed_rounds(
                plans[lead].experiment.federation,
                [progress.state for progress in going.values()],
                runs[lead].scores_cohort(going[lead]),
            )
            for i, (state, result) in zip(list(going), results, strict=True):
                try:
                    going[i] = runs[i].after_round(going[i], state, result, seconds)
                except (DivergedError, StoppedError) as error:
                    ends[i] = error
                    del going[i]
        for i, progress in going.items():
            ends[i] = runs[i].finish(progress)
    return [ends[i] for i in range(len(plans))]
