"""Time a round of FedAvg and of pFLAlign, and compare with the machine's peak.

python -m experiments.benchmark [--workload=cnn] [--json=FILE] [--devices=D] [--client_chunk=C]

Every client has 200 examples of 28x28 noise, batch 10: 20 steps per round. The two algorithms take
turns in one process; reported is the median over rounds.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from experiments.devices import use_devices
from pflalign_jax import algorithms, models
from pflalign_jax.datasets import FederatedDataset, Owned
from pflalign_jax.federated import federate

EXAMPLES, BATCH = 200, 10
WORKLOADS = {
    "cnn": (20, lambda: models.cnn(10)),
    "logistic": (100, lambda: models.logistic(10)),
    "mlp": (100, lambda: models.mlp(10, hidden=(200,))),
    "mlp2": (100, lambda: models.mlp(10, hidden=(100, 100))),
}
"""Name to the number of clients and the model."""

_WORKLOAD = flags.DEFINE_enum("workload", "cnn", list(WORKLOADS), "What to train.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
_DEVICES = flags.DEFINE_integer(
    "devices", None, "Simulated devices on a CPU; default: one per core.", lower_bound=1
)
_CHUNK = flags.DEFINE_integer("client_chunk", None, "Clients vmapped at a time.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each algorithm.", lower_bound=1)


def matmul_peak(size: int = 2048, repeats: int = 5) -> float:
    """Return GFLOP/s of a float32 matrix product on all devices at once, the best of repeats."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("clients",))
    spec = jax.sharding.PartitionSpec("clients")
    x = jax.device_put(
        np.ones((mesh.size, size, size), np.float32), jax.sharding.NamedSharding(mesh, spec)
    )
    product = jax.jit(
        jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )
    jax.block_until_ready(product(x))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        seconds.append(time.perf_counter() - start)
    return mesh.size * 2 * size**3 / min(seconds) / 1e9


def step_flops(model: models.Model, x: np.ndarray) -> float:
    """Return floating-point operations of one gradient of a batch, as XLA counts them."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *x.shape[1:])))
    batch = models.Batch(
        jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), jnp.float32),
        jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        jax.ShapeDtypeStruct((BATCH,), jnp.float32),
    )
    gradient = jax.jit(jax.grad(models.cross_entropy(model)))
    return gradient.lower(params, batch, jax.random.key(0)).compile().cost_analysis()["flops"]


def noise_dataset(clients: int, seed: int = 0) -> FederatedDataset:
    """Return 28x28 noise with 10 labels, equally many examples for every client."""
    rng = np.random.default_rng(seed)
    total = clients * EXAMPLES
    empty = Owned(np.zeros(0, np.int64), np.zeros(clients + 1, np.int64))
    train = Owned(np.arange(total), np.arange(clients + 1) * EXAMPLES)
    return FederatedDataset(
        "noise",
        rng.integers(0, 256, (total, 28, 28, 1), dtype=np.uint8),
        rng.integers(0, 10, total, dtype=np.int32),
        10,
        {"train": train, "validation": empty, "test": empty},
        np.arange(clients).astype(str),
        np.arange(clients, dtype=np.int32),
        np.float32(127.5),
        np.float32(127.5),
    )


def measure(workload: str, rounds: int, client_chunk: int | None) -> dict[str, object]:
    """Return the benchmark's figures.

    ``ms_per_client_step`` is wall time of a round over the client steps in it, on all devices
    together; ``ratio`` is to FedAvg.
    """
    clients, make_model = WORKLOADS[workload]
    dataset, model = noise_dataset(clients), make_model()
    loss = models.cross_entropy(model)
    contenders = {
        "fedavg": algorithms.fedavg(loss, 0.01, batch_size=BATCH),
        "pflalign": algorithms.pflalign(loss, 0.1, batch_size=BATCH),
    }
    runs, seconds = {}, {name: [] for name in contenders}
    for name, algorithm in contenders.items():
        federation = federate(algorithm, model, dataset, client_chunk=client_chunk)
        state, result = federation.run_round(federation.init(jax.random.key(0)))
        jax.block_until_ready(result.metrics)
        runs[name] = federation, state
    for _ in range(rounds):
        for name, (federation, state) in runs.items():
            start = time.perf_counter()
            state, result = federation.run_round(state)
            jax.block_until_ready((state.server, result.metrics))
            seconds[name].append(time.perf_counter() - start)
            runs[name] = federation, state
    peak, flops = matmul_peak(), step_flops(model, dataset.x)
    steps = clients * EXAMPLES // BATCH
    device = jax.devices()[0]
    figures = {"workload": workload, "clients": clients, "batch_size": BATCH}
    figures |= {"device": device.device_kind, "devices": len(jax.devices())}
    figures |= {"client_chunk": runs["fedavg"][0].client_chunk, "matmul_peak_gflops": peak}
    figures |= {"gflop_per_client_step": flops / 1e9, "algorithms": {}}
    reference = np.median(seconds["fedavg"])
    for name, values in seconds.items():
        median = float(np.median(values))
        figures["algorithms"][name] = {
            "ms_per_client_step": 1e3 * median / steps,
            "spread_ms": [1e3 * min(values) / steps, 1e3 * max(values) / steps],
            "ratio": float(median / reference),
            "fraction_of_peak": flops * steps / median / 1e9 / peak,
        }
    return figures


def main(argv: list[str]) -> None:
    """Measure, print, and write if asked."""
    del argv
    logging.set_verbosity(logging.WARNING)
    use_devices(_DEVICES.value)
    figures = measure(_WORKLOAD.value, _ROUNDS.value, _CHUNK.value)
    table = Table(
        title=f"{figures['workload']}, batch {BATCH}, {figures['clients']} clients on "
        f"{figures['devices']} "
        f"{figures['device']} devices, {figures['client_chunk']} clients at a time",
        caption=f"matrix product peak {figures['matmul_peak_gflops']:.0f} GFLOP/s; a client step "
        f"is {1e3 * figures['gflop_per_client_step']:.3g} MFLOP",
    )
    for column in ("algorithm", "ms per client step", "least .. most", "to FedAvg", "of peak"):
        table.add_column(column, justify="right")
    for name, row in figures["algorithms"].items():
        least, most = row["spread_ms"]
        table.add_row(
            name,
            f"{row['ms_per_client_step']:.3g}",
            f"{least:.3g} .. {most:.3g}",
            f"{row['ratio']:.2f}x",
            f"{100 * row['fraction_of_peak']:.0f} %",
        )
    Console().print(table)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
