"""The benchmark's figures are of the work that it says it did."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_command_line import ROOT

from experiments.benchmark import field, measuring, peers, random_weights, tables, workloads
from pflalign_jax import models
from pflalign_jax.models import pretrained
from pflalign_jax.runs import hardware


def test_figures_of_a_small_workload(monkeypatch):
    small = workloads.WORKLOADS["logistic"]._replace(sizes=np.array([20, 35, 10]), cohort=2)
    monkeypatch.setitem(workloads.WORKLOADS, "logistic", small)
    # A smaller product than that of a benchmark, which takes seconds on the tests' devices.
    monkeypatch.setattr(measuring, "matmul", lambda: hardware.matmul(512))
    monkeypatch.setattr(measuring, "matmul_peak", lambda: hardware.matmul_peak(512))
    figures = measuring.measure("logistic", rounds=2, client_chunk=2, against=[])
    assert (figures["clients"], figures["cohort"], figures["client_chunk"]) == (3, 2, 2)
    assert list(figures["contenders"]) == ["fedavg", "pflalign"]
    for row in figures["contenders"].values():
        assert 0 < row["ms_per_client_step"] < 1e3 * row["seconds_per_round"]
        assert 0 < row["fraction_of_peak"] < 1
        assert row["executed_over_useful_steps"] >= 1
        assert row["to_arithmetic"] > 1
    assert figures["contenders"]["fedavg"]["ratio"] == 1
    assert figures["peak_memory_gb"] > 0.05
    tables.main_table(figures)


def test_a_round_of_every_algorithm_over_fedavgs():
    """Adapters are compared with adapters, and models that are trained side by side all count."""
    small = workloads.Workload(lambda: models.mlp(10, (8,)), np.array([20, 20]))
    rows = field.field_figures(small, 2, ["ditto", "ffa_lora"])
    found = {(row["algorithm"], row["adapters"]): row for row in rows}
    assert list(found) == [
        ("ditto", False), ("fedavg", False), ("fedavg", True), ("ffa_lora", True)
    ]  # fmt: skip
    steps = {name: row["steps_per_round"] for (name, _), row in found.items()}
    assert steps == {"ditto": 8, "fedavg": 4, "ffa_lora": 4}
    for row in rows:
        expected = row["ms_per_round"] / row["steps_per_round"]
        assert row["ms_per_client_step"] == pytest.approx(expected)
        assert row["ratio_spread"][0] <= row["ratio"] <= row["ratio_spread"][1]
    assert found["fedavg", False]["ratio"] == found["fedavg", True]["ratio"] == 1
    table = tables.field_table({"cnn": rows, "mlp": rows})
    assert [column.header for column in table.columns[:4]] == [
        "algorithm", "cnn, ms per step", "cnn, ms per round", "cnn, round over FedAvg's"
    ]  # fmt: skip
    names, steps, rounds, *_ = (list(column.cells) for column in table.columns)
    assert len(table.columns) == 7 and names[-1] == "ffa_lora (adapters)"
    assert rounds == [f"{row['ms_per_round']:.3g}" for row in rows] and rounds != steps


@pytest.mark.slow  # a measurement is tested above
@pytest.mark.parametrize("over", ["chunk", "devices", "cohort"])
def test_scaling_tables(monkeypatch, tmp_path, over):
    small = workloads.WORKLOADS["logistic"]._replace(sizes=np.full(100, 10))
    monkeypatch.setitem(workloads.WORKLOADS, "logistic", small)
    rows = measuring.scaling(over, "logistic", 1, str(tmp_path))
    cases = {"chunk": [1, 2, 5, 10], "devices": [1, 2, 4, 8], "cohort": [10, 20, 50, 100]}
    assert [row[over] for row in rows] == cases[over]
    assert all(row["seconds_per_round"] > 0 for row in rows)
    tables.scaling_table("title", rows)


def test_contenders_take_turns():
    order = []
    contenders = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = measuring.take_turns(contenders, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_operations_of_a_step_are_counted():
    dataset = workloads.noise(workloads.WORKLOADS["logistic"])
    flops = hardware.step_flops(models.logistic(10), dataset, 10)
    products = 2 * (2 * 10 * 784 * 10)  # forward, and the gradient of the weights
    assert products <= flops < 1.1 * products


def test_loops_are_counted_as_often_as_they_run():
    """XLA's own count has their bodies once, and with that a 28th of a decoder's lower layers."""

    def product(x):
        return x @ x

    def loops(x):
        unused = jax.lax.map(product, jnp.ones((9, 8, 8)))

        def twice(x, _):
            return jax.lax.fori_loop(0, 2, lambda i, x: product(x), product(x)), unused

        return jax.lax.scan(twice, product(x), None, length=3)[0]

    flops = hardware.flops_of(jax.jit(loops).trace(jnp.ones((8, 8))))
    assert 10 * 2 * 8**3 <= flops < 10.2 * 2 * 8**3


def test_noise_of_every_workload_fits_its_model():
    for workload in workloads.WORKLOADS.values():
        dataset = workloads.noise(workload)
        assert dataset.splits["train"].sizes.tolist() == list(workload.sizes)
        assert dataset.y.max() < dataset.num_classes


def test_a_missing_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(peers.PeerError, match=r"--against=torch needs.*pflalign-jax\[bench\]"):
        peers.torch_round("cnn", workloads.noise(workloads.WORKLOADS["logistic"]))


def test_peers_refuse_work_that_they_do_not_have():
    with pytest.raises(peers.PeerError, match="--against=peft has no 'cnn' workload, only"):
        peers.peft_round("cnn", workloads.noise(workloads.WORKLOADS["logistic"]))


def test_random_weights_stand_in_for_models_that_are_not_installed(monkeypatch, tmp_path):
    def missing(name):
        raise pretrained.PretrainedError(f"{name} is not installed")

    small = {"hidden_size": 12, "intermediate_size": 16, "vocab_size": 20, "num_hidden_layers": 2}
    name = workloads.ENCODER
    monkeypatch.setattr(random_weights, "find_packaged", missing)
    monkeypatch.setitem(random_weights.CONFIGS, name, random_weights.CONFIGS[name] | small)
    folder = random_weights.packaged_or_random.__wrapped__(name)
    model = models.pretrained_encoder(3, folder, rank=2, adapt_layers=1, keep_hidden=False)
    x = jnp.ones((2, 5), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.eval_shape(model.apply, params, x).shape == (2, 3)
    assert (
        workloads.LORA["lora-decoder"].tokens
        == random_weights.CONFIGS[workloads.DECODER]["vocab_size"]
    )


@pytest.mark.slow
def test_what_a_round_holds_on_a_device_does_not_depend_on_the_number_of_clients():
    cases = measuring._cases("clients", workloads.LORA["lora-encoder"], "folder")
    assert [len(work.sizes) for work, _ in cases.values()] == [10, 100, 1000]
    held = []
    for work, options in cases.values():
        work = work._replace(model=lambda: models.logistic(10), tokens=0, classes=0)
        run = measuring.OurRound(
            "pflalign", work.model(), workloads.noise(work), work.batch,
            cohort_size=work.cohort, mesh=jax.sharding.Mesh(jax.devices()[:1], ("clients",)),
            **options,
        )  # fmt: skip
        held.append(run.program_bytes())
    assert len(set(held)) == 1 and held[0] > 4 * 7850


@pytest.mark.parametrize("peer", ["fedjax", "torch"])
def test_a_peer_does_the_same_work(peer):
    pytest.importorskip(peer, exc_type=ImportError)
    workload = workloads.WORKLOADS["logistic"]._replace(sizes=np.array([20, 35]))
    peers.PEERS[peer]("logistic", workloads.noise(workload))()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload=cnnn"], "--workload=cnnn is unknown; choose from ['cnn'"),
        (["--scale=width"], "--scale=width is unknown"),
    ],
)
def test_mistakes_are_named(arguments, message):
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and message in done.stdout + done.stderr


@pytest.mark.slow
def test_benchmark_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", "--rounds=1"]
    done = subprocess.run(
        [*command, f"--json={tmp_path / 'figures.json'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["workloads"]
    assert figures["matmul_peak_gflops"] > 1
    assert 0.2 < figures["gflop_per_client_step"] < 0.3
