"""What goes wrong in a round without ending the run, and what ends it; who came."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Federation, RoundResult


class DivergedError(Exception):
    """Training left the finite numbers."""


COUNTED = ("invited", "answered", "nonfinite")
"""What `count` counts: models sent, messages sent, messages left out."""


def count(result: RoundResult) -> dict[str, int]:
    """Return a round's share of what a line of metrics counts."""
    nonfinite = int(result.counts.nonfinite)
    return dict(zip(COUNTED, (result.invited, len(result.cohort), nonfinite), strict=True))


def columns(tally: Mapping[str, float], federation: Federation) -> dict[str, float]:
    """Return bytes and clients for a line of metrics.

    Bytes, invited and answered clients are means per round, ``clients/nonfinite`` is a sum.
    """
    up, down = (b / federation.cohort_size for b in federation.bytes_per_round)
    return {
        "bytes_up": round(up * tally["answered"] / tally["rounds"]),
        "bytes_down": round(down * tally["invited"] / tally["rounds"]),
        "clients/invited": tally["invited"] / tally["rounds"],
        "clients/answered": tally["answered"] / tally["rounds"],
        "clients/nonfinite": tally["nonfinite"],
    }


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
        f"(now {config.algorithm.learning_rate}) usually helps"
    )
    answered = int(result.counts.answered)
    if not answered and not left_out:
        logging.warning("round %d: no client answered; the server keeps what it has", done)
        return loss
    if left_out:
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
    if not math.isfinite(loss):
        whose = "" if answered else f" for all {left_out} clients"
        raise DivergedError(f"round {done}: the training loss is {loss}{whose}; {advice}")
    return loss


def finite_or_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of metrics with None (null in json) for what is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def ratio(a: Any, b: Any) -> float:
    """Return a / b of two counts, NaN for 0 / 0."""
    return int(a) / int(b) if int(b) else math.nan
