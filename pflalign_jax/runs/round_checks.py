"""What goes wrong in a round without ending the run, and what ends it."""

import math
import pathlib

from absl import logging
from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.errors import UserError
from pflalign_jax.federated import RoundResult

DIVERGED = "diverged"
"""Key of what a checkpoint says whose round ended the run: the message."""


class DivergedError(UserError):
    """Training left the finite numbers."""


def _of_regression(config: ConfigDict) -> str:
    """Return what helps as well where numbers far from 0 are predicted."""
    if config.task != "regression" or config.standardise_targets:
        return ""
    return ", and so does config.standardise_targets=True"


def check_round(
    done: int,
    result: RoundResult,
    config: ConfigDict,
    dataset: FederatedDataset,
    workdir: pathlib.Path | None,
) -> float:
    """Return a round's training loss, NaN if nobody answered; warn of whom it left out.

    Args:
      done: the round's number, from 1.
      result: its result.
      config: resolved; ``on_nonfinite`` decides.
      dataset: for names of clients.
      workdir: for the message.

    Raises:
      DivergedError: if nobody is left, or at once with ``on_nonfinite="raise"``.
    """
    loss, left_out = float(result.metrics["loss"]), int(result.counts.nonfinite)
    advice = (
        f"what was measured up to here is in {workdir}. A smaller config.algorithm.learning_rate "
        f"(now {config.algorithm.learning_rate}) usually helps{_of_regression(config)}"
    )
    answered = int(result.counts.answered)
    # A round that nobody answered is no failure: in simulations of availability they happen.
    if not answered and not left_out:
        logging.warning("round %d: no client answered; the server keeps what it has", done)
        return loss
    if left_out:
        # This waits for the round, so it is only looked up when somebody was left out.
        names = [str(dataset.client_names[k]) for k in result.nonfinite()]
        who = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        if config.on_nonfinite == "raise":
            raise DivergedError(
                f"round {done}: loss, message or state of client {who} is not finite, and "
                f"config.on_nonfinite is 'raise'; {advice}"
            )
        if answered:
            logging.warning(
                "round %d: client %s left out: loss, message or state is not finite", done, who
            )
    # The mean over those who are left; it is NaN if there are none.
    if not math.isfinite(loss):
        whose = "" if answered else f" for all {left_out} clients"
        raise DivergedError(f"round {done}: the training loss is {loss}{whose}; {advice}")
    return loss
