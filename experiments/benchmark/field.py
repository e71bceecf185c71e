"""What a round of every algorithm costs, over FedAvg's."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.any_algorithm import fitting_model, with_adapters
from experiments.benchmark.measuring import OurRound, ratios, take_turns
from experiments.benchmark.workloads import Workload, noise
from pflalign_jax import algorithms, models
from pflalign_jax.federated import client_mesh

FIELD = {
    "cnn": Workload(lambda: models.cnn(10), np.full(10, 100)),
    "mlp": Workload(lambda: models.mlp(10, (200,)), np.full(10, 200)),
}
"""Small ones: all algorithms exist at once, so that they can take turns."""

FIELDS: Mapping[str, Mapping[str, Any]] = {"fedbn": {"norms": ("*_0",)}}
"""FedBN keeps the first layer, as these models have no normalisation."""


def field_figures(
    workload: Workload, rounds: int, names: Sequence[str] = algorithms.NAMES
) -> list[dict[str, Any]]:
    """Return what rounds of algorithms cost on one device, in turns.

    On a CPU milliseconds are those of its cores, added up; elsewhere those of a clock.

    Algorithms that train adapters alone are compared with FedAvg on the same adapters.

    Args:
      workload: what they train.
      rounds: how many are timed.
      names: of the algorithms.

    Returns:
      Rows with ``algorithm``, ``adapters``, ``steps_per_round``, ``ms_per_client_step``,
      ``ms_per_round``, ``ratio``, the median of its rounds over FedAvg's in the same turn, and
      ``ratio_spread``, the least and the most. Where an algorithm trains several models, the steps
      of each count.
    """
    dataset, model = noise(workload), workload.model()
    adapted = with_adapters(model, dataset)
    mesh = client_mesh(jax.devices()[:1])
    chosen = {n: fitting_model(n, (model, adapted), dataset, FIELDS.get(n, {})) for n in names}
    wanted = {(n, chosen[n] is adapted): chosen[n] for n in names}
    # What the others are compared with.
    wanted |= {("fedavg", in_adapters): (model, adapted)[in_adapters] for _, in_adapters in wanted}
    runs = {
        case: OurRound(case[0], m, dataset, workload.batch, FIELDS.get(case[0], {}), mesh=mesh)
        for case, m in wanted.items()
    }
    # On a CPU the time that it computes, which other programs on the machine change little.
    on_cpu = jax.devices()[0].platform == "cpu"
    seconds = take_turns(runs, rounds, time.process_time if on_cpu else time.perf_counter)
    return [_row(case, runs[case], seconds) for case in sorted(runs, key=lambda case: case[::-1])]


def _row(case: tuple[str, bool], run: OurRound, seconds: Mapping) -> dict[str, Any]:
    name, in_adapters = case
    per_round, steps = 1e3 * float(np.median(seconds[case])), float(np.median(run.steps[1:]))
    return {
        "algorithm": name,
        "adapters": in_adapters,
        "steps_per_round": steps,
        "ms_per_client_step": per_round / steps,
        "ms_per_round": per_round,
        **ratios(seconds[case], seconds["fedavg", in_adapters]),
    }
