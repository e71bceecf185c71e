"""The sections of a check, on one device. Each yields rows as it measures them, or lists them all.

What takes turns is measured together: its rows are a list.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.any_algorithm import fitting_model, named_algorithm, with_adapters
from experiments.benchmark.measuring import OurRound, take_turns
from experiments.benchmark.peers import torch_round
from experiments.benchmark.workloads import Workload, noise
from experiments.device_check.report import Report, Rows
from experiments.device_check.sizes import PRECISIONS, Size
from pflalign_jax import datasets, models
from pflalign_jax.cli.command import FlagError
from pflalign_jax.federated import client_mesh, federate
from pflalign_jax.runs.hardware import matmul_peak, memory, step_flops

TOLERANCE = 1e-3
"""Relative difference of a round's results from the CPU's, up to which they count as equal."""


def our_round(name: str, workload: Workload, **options: Any) -> OurRound:
    """Return rounds of an algorithm on the first device."""
    model, dataset = workload.model(), noise(workload)
    mesh = client_mesh(jax.devices()[:1])
    return OurRound(name, model, dataset, workload.batch, mesh=mesh, **options)


def per_step(runs: Mapping[Any, OurRound], rounds: int) -> dict[Any, float]:
    """Return the median milliseconds per client step of each, in turns."""
    seconds = take_turns(runs, rounds)
    return {n: 1e3 * float(np.median(seconds[n])) / run.steps[-1] for n, run in runs.items()}


def results_as_on_cpu(size: Size) -> Rows:
    """Compare a round of every algorithm with the CPU's, clients vmapped here and one by one there.

    Products are of full float32 precision here.
    """
    data = datasets.digits(num_clients=4, fraction=0.1)
    mlp = models.mlp(10, (12,))
    candidates = (mlp, with_adapters(mlp, data), models.resnet(10, depth=10, width=4))
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    for name in size.algorithms:
        model = fitting_model(name, candidates, data)
        expected = _after_a_round(name, model, data, cpu, 1)
        with jax.default_matmul_precision("highest"):
            found = _after_a_round(name, model, data, device, 2)
        difference = largest_difference(found, expected)
        yield {"algorithm": name, "difference": difference, "ok": difference < TOLERANCE}


def _after_a_round(
    name: str,
    model: models.Model,
    data: datasets.FederatedDataset,
    device: jax.Device,
    chunk: int,
) -> Any:
    """Return the states of the server and of all clients after a round, on the host."""
    algorithm = named_algorithm(name, model, data, learning_rate=0.05, batch_size=10)
    with jax.default_device(device):
        federation = federate(
            algorithm, model, data, mesh=client_mesh([device]), client_chunk=chunk
        )
        state, _ = federation.run_round(federation.init(jax.random.key(0)))
        clients = [federation.client_state(state, k) for k in range(data.num_clients)]
        return jax.tree.map(np.asarray, (state.server, clients))


def largest_difference(found: Any, expected: Any) -> float:
    """Return the largest relative difference of two trees' leaves; infinite if one is not finite.

    A leaf counts as at least a thousandth of the largest, so that zeros are not divided by.
    """
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    ]
    sizes = [np.linalg.norm(b) for _, b in pairs]
    least = 1e-3 * max(sizes) or 1.0
    worst = max(
        np.linalg.norm(a - b) / max(own, least) for (a, b), own in zip(pairs, sizes, strict=True)
    )
    return float(worst) if np.isfinite(worst) else float("inf")


def chunks(size: Size) -> Rows:
    """Time clients at a time, and say which is best and what the automatic choice loses to it."""
    workload = next(iter(size.workloads.values()))
    for name in size.contenders:
        automatic = our_round(name, workload)
        runs = {c: our_round(name, workload, client_chunk=c) for c in size.chunks}
        times = per_step({**runs, "automatic": automatic}, size.rounds)
        best = min(times, key=lambda chunk: times[chunk])
        chosen = automatic.federation.client_chunk
        row = {f"ms per step, {chunk} at a time": times[chunk] for chunk in size.chunks}
        yield {
            "algorithm": name,
            **row,
            "best": chosen if best == "automatic" else best,
            "automatic": chosen,
            "automatic loses": times["automatic"] / times[best] - 1,
        }


def convolutions(size: Size) -> Rows:
    """Time convolutions of XLA against patches and a matrix product."""
    for name, make in size.convolutions.items():
        runs = {conv: our_round("fedavg", make(conv)) for conv in ("lax", "patches")}
        times = per_step(runs, size.rounds)
        row = {f"ms per step, {conv}": value for conv, value in times.items()}
        yield {"model": name, **row, "patches over lax": times["patches"] / times["lax"]}


def precisions(size: Size) -> Rows:
    """Time precisions, and say how far a round's loss is from that of full float32."""
    workload = next(iter(size.workloads.values()))
    runs: dict[str, Callable[[], None]] = {}
    rounds: dict[str, OurRound] = {}
    for name, (products, dtype) in PRECISIONS.items():
        lowered = workload
        if dtype is not None:
            lowered = workload._replace(model=functools.partial(_lowered, workload, dtype))
        rounds[name] = our_round("fedavg", lowered)
        runs[name] = functools.partial(_with_products, products, rounds[name])
    seconds = take_turns(runs, size.rounds)
    exact = rounds["float32"].state.server
    return [
        {
            "precision": name,
            "ms per step": 1e3 * float(np.median(seconds[name])) / run.steps[-1],
            "model differs by": largest_difference(run.state.server, exact),
        }
        for name, run in rounds.items()
    ]


def _lowered(workload: Workload, dtype: str) -> models.Model:
    return models.with_compute_dtype(workload.model(), dtype)


def _with_products(precision: str, run: OurRound) -> None:
    with jax.default_matmul_precision(precision):
        run()


def workload_figures(size: Size, name: str) -> Rows:
    """Time FedAvg and pFLAlign on a workload: speed, share of the peak, memory, compilation."""
    workload = size.workloads[name]
    dataset, model = noise(workload), workload.model()
    flops = step_flops(model, dataset, workload.batch)
    peak = matmul_peak(size.product) / len(jax.devices())
    runs, first = {}, {}
    for algorithm in ("fedavg", "pflalign"):
        runs[algorithm] = our_round(algorithm, workload)
        begin = time.perf_counter()
        runs[algorithm]()
        first[algorithm] = time.perf_counter() - begin
    times = per_step(runs, size.rounds)
    rows = []
    for algorithm, run in runs.items():
        seconds = times[algorithm] / 1e3
        row = {
            "algorithm": algorithm,
            "ms per step": times[algorithm],
            "steps per second": 1 / seconds,
            "share of peak": flops / seconds / peak,
            "over fedavg": times[algorithm] / times["fedavg"],
            "compilation, s": max(first[algorithm] - seconds * run.steps[-1], 0.0),
            "chunk": run.federation.client_chunk,
            "program, GB": run.program_bytes() / 1e9,
            "most memory so far, GB": memory()[1] / 1e9,
        }
        rows.append(row)
    return rows


def many_clients(size: Size) -> Rows:
    """Run a round of many clients, a chunk at a time."""
    for name in size.contenders:
        run = our_round(name, size.many)
        times = per_step({name: run}, size.rounds)
        yield {
            "algorithm": name,
            "clients": len(size.many.sizes),
            "chunk": run.federation.client_chunk,
            "s per round": times[name] * run.steps[-1] / 1e3,
            "ms per step": times[name],
            "most memory so far, GB": memory()[1] / 1e9,
        }


def seeds_together(size: Size) -> Rows:
    """Run several seeds as one program, and one after the other."""
    workload = next(iter(size.workloads.values()))
    federation = our_round("pflalign", workload).federation

    def states() -> list[Any]:
        return [federation.init(jax.random.key(seed)) for seed in range(size.seeds)]

    together, alone = states(), states()

    def one_program() -> None:
        together[:] = [state for state, _ in federation.run_rounds(together)]
        jax.block_until_ready([state.server for state in together])

    def one_by_one() -> None:
        alone[:] = [federation.run_round(state)[0] for state in alone]
        jax.block_until_ready([state.server for state in alone])

    seconds = take_turns({"together": one_program, "alone": one_by_one}, size.rounds)
    difference = largest_difference(*([s.server for s in states] for states in (together, alone)))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    row = {
        "seeds": size.seeds,
        "s together": medians["together"],
        "s one by one": medians["alone"],
        "together over alone": medians["together"] / medians["alone"],
        "difference": difference,
        "ok": difference < TOLERANCE,
    }
    return [row]


def against_torch(size: Size) -> Rows:
    """Time a round of FedAvg in PyTorch, eager and compiled, where it is installed."""
    if importlib.util.find_spec("torch") is None:
        yield {"torch": "not installed"}
        return
    for name, workload in size.peers.items():
        dataset = noise(workload)
        ours = our_round("fedavg", workload)
        for compiled in (False, True):
            theirs = torch_round(name, dataset, compiled=compiled, accelerated=True)
            seconds = take_turns({"ours": ours, "torch": theirs}, size.rounds)
            medians = {who: float(np.median(values)) for who, values in seconds.items()}
            yield {
                "workload": name,
                "torch": "compiled" if compiled else "eager",
                "s per round, ours": medians["ours"],
                "s per round, torch": medians["torch"],
                "torch over ours": medians["torch"] / medians["ours"],
            }


def peaks(size: Size) -> Rows:
    """Time a matrix product in each precision."""
    x = jax.device_put(np.ones((size.product, size.product), np.float32), jax.devices()[0])
    for name, precision, dtype in (
        ("float32", "highest", "float32"),
        ("TF32", "tensorfloat32", "float32"),
        ("bfloat16", "default", "bfloat16"),
    ):
        with jax.default_matmul_precision(precision):
            run = _product(x.astype(dtype))
            seconds = take_turns({"product": run}, 5)["product"]
        yield {"product": name, "TFLOP/s": 2.0 * size.product**3 / min(seconds) / 1e12}


def _product(x: jax.Array) -> Callable[[], None]:
    product = jax.jit(lambda a: a @ a)
    return lambda: jax.block_until_ready(product(x))


def all_sections(size: Size) -> Iterator[tuple[str, Callable[[], Rows]]]:
    """Yield the sections by name, those first that matter most if the time is not enough.

    Figures of a device that computes something else are worth nothing.
    """
    yield "results as on a CPU", functools.partial(results_as_on_cpu, size)
    yield "peaks", functools.partial(peaks, size)
    for name in size.workloads:
        yield f"rounds of {name}", functools.partial(workload_figures, size, name)
    yield "chunks", functools.partial(chunks, size)
    yield "many clients", functools.partial(many_clients, size)
    yield "precisions", functools.partial(precisions, size)
    yield "convolutions", functools.partial(convolutions, size)
    yield "seeds as one program", functools.partial(seeds_together, size)
    yield "PyTorch", functools.partial(against_torch, size)


def chosen_sections(
    size: Size, names: Sequence[str] | None = None
) -> dict[str, Callable[[], Rows]]:
    """Return the sections of these names, in the order of the check; None: all.

    Raises:
      FlagError: naming the first that there is not.
    """
    found = dict(all_sections(size))
    for name in names or ():
        if name not in found:
            raise FlagError(f"--sections={name} is unknown; choose from {list(found)}")
    return {name: run for name, run in found.items() if names is None or name in names}


def check(sections: Mapping[str, Callable[[], Rows]], report: Report) -> list[str]:
    """Run sections and return what went wrong."""
    device = jax.devices()[0]
    report.content["device"] = {
        "kind": device.device_kind,
        "platform": device.platform,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
    }
    for name, section in sections.items():
        report.run(name, section)
    return report.failures()
