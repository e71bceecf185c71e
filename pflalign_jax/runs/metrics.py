"""What a row of ``metrics.jsonl`` and ``summary.json`` hold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax import datasets
from pflalign_jax.federated import Federation, RoundResult
from pflalign_jax.federated.round_program import Work
from pflalign_jax.runs import message_config
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.headline import Headline, headline_of
from pflalign_jax.runs.versions import versions

Row = dict[str, Any]
"""A row of ``metrics.jsonl``: name to number, None where it is not finite."""


class Tally(NamedTuple):
    """What is counted over the rounds between two rows of metrics.

    Attributes:
      rounds: how many.
      steps: local steps of clients, without those that only pad.
      examples: training examples that were visited.
      seconds: that rounds took, without evaluation and compilation.
      invited: models sent.
      answered: messages sent.
      nonfinite: messages left out.
    """

    rounds: int = 0
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    invited: int = 0
    answered: int = 0
    nonfinite: int = 0

    def plus(self, result: RoundResult, examples: int, seconds: float) -> "Tally":
        """Return the tally after one more round."""
        return Tally(
            self.rounds + 1,
            self.steps + int(result.work.useful),
            self.examples + examples,
            self.seconds + seconds,
            self.invited + result.invited,
            self.answered + len(result.cohort),
            self.nonfinite + int(result.counts.nonfinite),
        )


def examples_visited(experiment: Experiment, cohort: np.ndarray) -> int:
    """Return how many training examples a cohort visits in a round."""
    sizes = experiment.dataset.splits["train"].sizes
    return experiment.config.local_epochs * int(sizes[cohort].sum())


def speed_columns(
    tally: Tally, work: Work, devices: int, step_flops: float, matmul_peak: float
) -> Row:
    """Return how fast the rounds of a tally were.

    Args:
      tally: since the last row.
      work: of the last round.
      devices: D.
      step_flops: operations of one local step.
      matmul_peak: operations per second of all devices on a matrix product.
    """
    steps_per_second = tally.steps / tally.seconds
    return {
        "client_steps_per_second": steps_per_second,
        "examples_per_second": tally.examples / tally.seconds,
        "fraction_of_matmul_peak": tally.steps * step_flops / tally.seconds / matmul_peak,
        "executed_over_useful_steps": _ratio(work.executed, work.useful),
        "slowest_over_mean_device": devices * _ratio(work.slowest, work.all_devices),
    }


def traffic_columns(tally: Tally, federation: Federation) -> Row:
    """Return bytes and clients of the rounds of a tally.

    Bytes, invited and answered clients are means per round, ``clients/nonfinite`` is a sum.
    """
    # What one client sends and gets; how many did is counted round by round.
    up, down = (b / federation.cohort_size for b in federation.bytes_per_round)
    return {
        "bytes_up": round(up * tally.answered / tally.rounds),
        "bytes_down": round(down * tally.invited / tally.rounds),
        "clients/invited": tally.invited / tally.rounds,
        "clients/answered": tally.answered / tally.rounds,
        "clients/nonfinite": tally.nonfinite,
    }


def privacy_columns(experiment: Experiment, rounds: int) -> Row:
    """Return what ``rounds`` rounds are worth of privacy; empty without noise."""
    config, participation = experiment.config, experiment.participation
    return message_config.privacy(config, participation, experiment.dataset.num_clients, rounds)


def finite_or_none(row: Mapping[str, Any]) -> Row:
    """Return a row with None (null in json) for what is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def best_on_validation(rows: Sequence[Row], headline: Headline) -> Row | None:
    """Return the row with the best validation headline, the earliest of equals.

    None where nobody has validation examples, or where no score is finite.
    """
    chosen_by = headline.key("validation")
    scored = [row for row in rows if row.get(chosen_by) is not None]
    # The first of equals, as `max` finds it.
    return max(scored, key=lambda row: headline.merit(row[chosen_by]), default=None)


def summary_of(experiment: Experiment, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what ``summary.json`` holds.

    ``best_validation`` is of `best_on_validation`, never chosen on test data.
    """
    config, dataset, federation = experiment.config, experiment.dataset, experiment.federation
    headline = headline_of(federation.task)
    best = best_on_validation(rows, headline)
    device = federation.mesh.devices.flat[0]
    return {
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "dataset": {
            **datasets.dataset_summary(dataset),
            "partition_hash": datasets.partition_hash(dataset),
        },
        "cohort_size": federation.cohort_size,
        "client_chunk": federation.client_chunk,
        "client_state_in": federation.client_state_in,
        "headline": headline._asdict(),
        "chosen_by": headline.key("validation") if best else None,
        "best_validation": best,
        "last": rows[-1],
        "privacy": finite_or_none(privacy_columns(experiment, int(rows[-1]["round"]))),
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": federation.mesh.size,
        },
        # What numbers may depend on.
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
    }


def _ratio(a: Any, b: Any) -> float:
    """Return a / b of two counts, NaN for 0 / 0."""
    return int(a) / int(b) if int(b) else math.nan
