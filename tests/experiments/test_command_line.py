"""What a user types, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import pflalign_jax as pfl
from experiments import digits

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ("--config.rounds=2", "--config.dataset.num_clients=4", "--config.model.hidden=(8,)")


def run(*arguments, module="experiments.run"):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_digits_run_then_more_rounds_by_the_directory_alone(tmp_path):
    arguments = ("--config=experiments/digits.py", f"--workdir={tmp_path / 'run'}", *TINY)
    first = run(*arguments, "--config.algorithm.name=fedavg")
    assert first.returncode == 0, first.stderr
    assert "round 2/2" in first.stdout
    assert "test/personal/adapted" in first.stdout
    assert str(tmp_path / "run") in first.stdout
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        *("config.json", "metrics.jsonl", "clients.csv", "partition.npz", "summary.json", "plots"),
        *("data.json", "checkpoints", "lock", "command.txt"),
    }
    go_on = f"experiments.run --workdir={tmp_path / 'run'}"
    command = (tmp_path / "run" / "command.txt").read_text().splitlines()
    assert command[1] == f"# To go on with this run, or with more rounds of it: python -m {go_on}"
    second = run(f"--workdir={tmp_path / 'run'}", "--config.rounds=3")
    assert second.returncode == 0, second.stderr
    assert "round 3/3" in second.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["algorithm"] == "fedavg" and summary["last"]["round"] == 3
    changed = [*command[0].replace("--config.rounds=2 ", "").split(), "--config.rounds=3"]
    assert (tmp_path / "run" / "command.txt").read_text().split("\n")[0].split() == changed


@pytest.mark.slow  # tests/datasets reads such files
def test_npz_of_strangers(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        np.savez(
            tmp_path / f"{split}.npz",
            x=rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            y=np.arange(count) % 4,
            client=np.array(["anna", "bob", "cleo", "dan"])[np.arange(count) // 5 % 4],
        )
    done = run(
        "--config=experiments/femnist.py",
        f"--config.dataset.path={tmp_path}",
        "--config.cohort_size=2",
        "--config.rounds=1",
        "--config.model.name=logistic",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    assert "bob" in (tmp_path / "run" / "clients.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=experiments/digits.py", "--config.round=1"], "rounds"),
        (["--config=experiments/shakespeare.py"], "config.dataset.path is not set"),
        (["--config=experiments/femnist.py", "--config.dataset.path=/nowhere"], "/nowhere"),
        (["--config=experiments/digits.py", "--num_processes=2"], "--coordinator_address is not"),
        (["--config=experiments/digits.py", "--workdir=/proc/run"], "/proc/run cannot be written"),
    ],
)
def test_mistakes_end_with_one_clear_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_the_fields():
    done = run("--help")
    assert "config" in done.stdout
    for field in ("cohort_size", "dataset.alpha", "algorithm.learning_rate", "--workdir"):
        assert field in done.stdout


def test_partition_is_shown_saved_and_used_again(tmp_path):
    data = ("--config.dataset.num_clients=4", "--config.dataset.num_new_clients=2")
    shown = run(
        "--config=experiments/digits.py", f"--workdir={tmp_path / 'p'}", *data,
        module="experiments.partition",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "4 clients and 2 new, 10 classes" in shown.stdout and "hash " in shown.stdout
    rows = (tmp_path / "p" / "partition.csv").read_text().splitlines()
    assert rows[0].startswith("client,new,train") and len(rows) == 7
    plots = {path.name for path in (tmp_path / "p" / "plots").iterdir()}
    assert plots == {"label_counts.png", "client_sizes.png", "examples.png"}
    config = digits.get_config()
    config.rounds, config.model.hidden = 1, (8,)
    config.dataset.partition_file = str(tmp_path / "p" / "partition.npz")
    pfl.runs.run(config, tmp_path / "r", say=lambda text: None)
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert f"hash {summary['dataset']['partition_hash']}" in shown.stdout
    assert summary["dataset"]["new_clients"] == 2
    assert "accuracy/new_clients/personal/adapted/mean" in summary["last"]
    clients = (tmp_path / "r" / "clients.csv").read_text()
    assert ",new_clients,personal,received," in clients
    refused = run(
        "--config=experiments/digits.py", f"--workdir={tmp_path / 's'}",
        f"--config.dataset.partition_file={config.dataset.partition_file}",
        "--config.dataset.label_shift=swap",
    )  # fmt: skip
    assert refused.returncode == 2 and "does not fit digits" in refused.stderr
    assert "Traceback" not in refused.stderr
