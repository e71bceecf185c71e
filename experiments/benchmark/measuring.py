"""Rounds of several contenders, timed in turns."""

import itertools
import pathlib
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from experiments.benchmark.any_algorithm import NO_FIELDS, named_algorithm
from experiments.benchmark.peers import PEERS
from experiments.benchmark.workloads import LENGTH, WORKLOADS, Workload, noise
from pflalign_jax import models
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import client_mesh, federate
from pflalign_jax.runs.hardware import matmul, matmul_peak, peak_memory, step_flops

Name = TypeVar("Name", bound=Hashable)


def take_turns(
    contenders: Mapping[Name, Callable[[], None]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Return seconds of each contender's rounds, in turns, after one that is not counted.

    Args:
      contenders: to run, by name.
      rounds: of each.
      clock: what tells the time; that of the process (`time.process_time`) is not changed by other
        programs that want the same cores.
    """
    for run in contenders.values():
        run()
    seconds: dict[Name, list[float]] = {name: [] for name in contenders}
    # In turns, so that what else the machine does hits all of them alike.
    for _ in range(rounds):
        for name, run in contenders.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


class OurRound:
    """One federation, advanced a round at every call; keeps what the last round cost."""

    def __init__(
        self,
        algorithm: str,
        model: models.Model,
        dataset: FederatedDataset,
        batch_size: int,
        fields: Mapping[str, Any] = NO_FIELDS,
        **options: Any,
    ) -> None:
        rate = 0.1 if algorithm == "pflalign" else 0.01
        supplied = {"learning_rate": rate, "batch_size": batch_size}
        made = named_algorithm(algorithm, model, dataset, fields, **supplied)
        self.federation = federate(made, model, dataset, **options)
        self.state = self.federation.init(jax.random.key(0))
        self.steps: list[int] = []
        self.work: Any = None

    def __call__(self) -> None:
        """Run a round to its end."""
        self.state, result = self.federation.run_round(self.state)
        jax.block_until_ready((self.state.server, result.metrics))
        self.work = jax.tree.map(int, result.work)
        self.steps.append(self.work.useful)

    def program_bytes(self) -> int:
        """Return what a round's program holds on a device: arguments, results and temporaries."""
        memory: Any = self.federation.lower_round(self.state).compile().memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def figures_of(seconds: list[float], steps: float, flops: float, peak: float) -> dict[str, object]:
    """Return the figures of one contender that took ``steps`` client steps per round."""
    median = float(np.median(seconds))
    return {
        "ms_per_client_step": 1e3 * median / steps,
        "spread_ms": [1e3 * min(seconds) / steps, 1e3 * max(seconds) / steps],
        "seconds_per_round": median,
        "fraction_of_peak": flops * steps / median / peak,
    }


def ratios(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Return how long rounds take over those of ``base`` in the same turn.

    ``ratio`` is the median, ``ratio_spread`` the least and the most.
    """
    found = np.array(seconds) / np.array(base)
    return {
        "ratio": float(np.median(found)),
        "ratio_spread": [float(found.min()), float(found.max())],
    }


def measure(name: str, rounds: int, client_chunk: int | None, against: list[str]) -> dict[str, Any]:
    """Return the figures of one workload.

    ``ms_per_client_step`` is wall time of a round over the client steps in it, on all devices
    together; ``ratio`` is its multiple of our FedAvg, and ``to_arithmetic`` of what the operations
    of its steps take in a matrix product, of the same turn.
    """
    workload = WORKLOADS[name]
    dataset, model, batch = noise(workload), workload.model(), workload.batch
    options: dict[str, Any] = {
        "cohort_size": workload.cohort,
        "client_chunk": client_chunk,
        "batch_size": batch,
    }
    ours = {n: OurRound(n, model, dataset, **options) for n in ("fedavg", "pflalign")}
    peers = {n: PEERS[n](name, dataset) for n in against}
    product, product_flops = matmul()
    seconds = take_turns({**ours, **peers, "product": product}, rounds)
    products = np.array(seconds.pop("product"))
    prepared = ours["fedavg"].federation.dataset
    # What the arithmetic needs: patches for several outputs at once multiply some zeros.
    counted = models.cnn(10, conv="lax") if name in ("cnn", "writers") else model
    peak, flops = matmul_peak(), step_flops(counted, prepared, batch)
    steps = float(np.median(ours["fedavg"].steps[1:]))
    contenders: dict[str, dict[str, Any]] = {}
    for contender, values in seconds.items():
        arithmetic = flops * steps / product_flops * products
        contenders[contender] = {
            **figures_of(values, steps, flops, peak),
            **ratios(values, seconds["fedavg"]),
            "to_arithmetic": float(np.median(np.array(values) / arithmetic)),
        }
        if workload.tokens:
            per_round = steps * batch * LENGTH
            contenders[contender]["tokens_per_second"] = per_round / float(np.median(values))
    for contender, run in ours.items():
        executed = run.work.executed / run.work.useful
        contenders[contender]["executed_over_useful_steps"] = executed
    federation, device = ours["fedavg"].federation, jax.devices()[0]
    return {
        "workload": name,
        "clients": dataset.num_clients,
        "cohort": federation.cohort_size,
        "batch_size": batch,
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "client_chunk": federation.client_chunk,
        "matmul_peak_gflops": peak / 1e9,
        "gflop_per_client_step": flops / 1e9,
        "peak_memory_gb": peak_memory() / 1e9,
        "contenders": contenders,
    }


SCALES = ("chunk", "devices", "clients", "cohort")
"""What `scaling` can go over."""


def scaling(over: str, name: str, rounds: int, folder: str) -> list[dict[str, Any]]:
    """Return figures of pFLAlign over chunk, devices, clients K or cohort C, taking turns.

    ``clients`` is an MLP of 100,000 parameters with a cohort of 32 and states on disk, or adapters
    of the encoder with a cohort of 10 and states on the host: what a round costs, and what its
    program holds on devices, must not depend on K.

    Args:
      over: one of `SCALES`.
      name: of the workload.
      rounds: how many are timed.
      folder: for states on disk.
    """
    # All exist at once, which matters for memory; a clients' case holds none of them on devices.
    runs = {
        case: OurRound(
            "pflalign",
            work.model(),
            noise(work),
            **{"cohort_size": work.cohort, "batch_size": work.batch, **options},
        )
        for case, (work, options) in _cases(over, WORKLOADS[name], folder).items()
    }
    rows = []
    for case, values in take_turns(runs, rounds).items():
        run = runs[case]
        per_step = np.array(values) / np.array(run.steps[1:])
        row = {
            over: int(case),
            "seconds_per_round": float(np.median(values)),
            "spread_seconds": [min(values), max(values)],
            "ms_per_client_step": 1e3 * float(np.median(per_step)),
            "executed_over_useful_steps": run.work.executed / run.work.useful,
        }
        if over == "clients":
            used = sum(p.stat().st_blocks * 512 for p in pathlib.Path(folder, case).rglob("*"))
            row |= {"disk_gb": used / 1e9, "program_mb": run.program_bytes() / 1e6}
        rows.append(row)
    return rows


def _cases(over: str, workload: Workload, folder: str) -> dict[str, tuple[Workload, dict]]:
    """Return what `scaling` compares: name of a case to its workload and options of `federate`."""
    if over == "chunk":
        return {str(c): (workload, {"client_chunk": c}) for c in (1, 2, 5, 10)}
    if over == "cohort":
        return {str(c): (_resized(workload, cohort=c), {}) for c in (10, 20, 50, 100)}
    cases: dict[str, tuple[Workload, dict]] = {}
    if over == "devices":
        for d in itertools.takewhile(lambda d: d <= len(jax.devices()), (1, 2, 4, 8)):
            cases[str(d)] = (workload, {"mesh": client_mesh(jax.devices()[:d])})
    elif workload.classes:  # adapters of the encoder
        for k in (10, 100, 1000):
            work = _resized(workload._replace(sizes=np.array([8])), clients=k, cohort=10)
            cases[str(k)] = (work, {"client_state_in": "host"})
    else:
        small = Workload(lambda: models.mlp(10, (128,)), np.array([100]), cohort=32)
        for k in (100, 1000, 10_000):
            place = {"client_state_in": "disk", "state_dir": f"{folder}/{k}"}
            cases[str(k)] = (_resized(small, clients=k), place)
    return cases


def _resized(workload: Workload, clients: int | None = None, cohort: int | None = None) -> Workload:
    """Return a workload with another number of clients or another cohort."""
    sizes = workload.sizes if clients is None else np.resize(workload.sizes, clients)
    return workload._replace(sizes=sizes, cohort=cohort or workload.cohort)
