"""Two local processes that join give the numbers of one, each with its own clients."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import pflalign_jax as pfl
from experiments import digits
from pflalign_jax.cli.devices import DeviceError, join_processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = {"rounds": 3, "eval_every": 2, "cohort_size": 7, "model.hidden": (8,)}
GIVEN = (
    "--config=experiments/digits.py",
    "--devices=2",
    *(f"--config.{name}={value}" for name, value in FIELDS.items()),
)


def start(workdir, cache, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *GIVEN, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    try:
        texts = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    return texts


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("place", ["device", pytest.param("disk", marks=pytest.mark.slow)])
def test_two_processes_are_one_run(place, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together, alone = tmp_path / "together", tmp_path / "alone"
    joined = [
        start(
            together,
            tmp_path / "cache",
            f"--config.client_state_in={place}",
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    first, second = finish(joined)
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    pfl.runs.run(config, alone, say=lambda text: None)
    assert "test/personal/adapted" in first and "test/personal/adapted" not in second
    assert json.loads((together / "summary.json").read_text())["device"]["count"] == 4
    rows, expected = metrics(together), metrics(alone)
    assert [row["round"] for row in rows] == [row["round"] for row in expected] == [2, 3]
    for row, other in zip(rows, expected, strict=True):
        for name in other:
            if name.startswith(("accuracy", "loss", "bytes")):
                assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("place", ["device", "disk"])
def test_two_processes_stop_and_go_on_together(place, tmp_path):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"

    def pair(path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        joined = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2")
        place_of = f"--config.client_state_in={place}"
        long = (place_of, "--config.rounds=200", "--config.checkpoint_every=3")
        return [
            start(path, tmp_path / "cache", *long, *joined, f"--process_id={i}") for i in range(2)
        ]

    finish(pair(alone))
    first, second = pair(stopped)
    while not (stopped / "metrics.jsonl").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)  # one is asked, both stop
    texts = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [143, 143], texts
    first, _ = finish(pair(stopped))
    assert "going on in" in first
    for row, other in zip(metrics(stopped), metrics(alone), strict=True):
        for name in other:
            if name.startswith(("accuracy", "loss", "bytes", "round")):
                assert row[name] == other[name], name


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_dies_the_other_ends_and_the_run_goes_on_with_one_process(victim, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    long = ("--config.rounds=60", "--config.checkpoint_every=3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2")
    both = [start(killed, tmp_path / "cache", *long, *joined, f"--process_id={i}") for i in (0, 1)]
    while not list((killed / "checkpoints").glob("0*[0-9]")):
        assert both[0].poll() is None
        time.sleep(0.01)
    both[victim].send_signal(signal.SIGKILL)
    clock = time.monotonic()
    text, _ = both[1 - victim].communicate(timeout=120)
    print(f"process {victim} killed: the other ended after {time.monotonic() - clock:.0f} s")
    assert time.monotonic() - clock < 30 and both[1 - victim].returncode != 0
    assert f"error: process {1 - victim} of 2 was killed, or ended as another one died" in text
    assert "goes on from its last checkpoint" in text
    both[victim].communicate()
    (text,) = finish([start(killed, tmp_path / "cache", *long)])
    assert "going on in" in text
    finish([start(alone, tmp_path / "cache", *long)])
    assert [row["round"] for row in metrics(killed)] == [row["round"] for row in metrics(alone)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((False, "localhost:1", None, 0), "--num_processes is not set"),
        ((False, None, 2, 0), "--coordinator_address is not set"),
        ((False, "localhost:1", 2, 2), "--process_id=2 is not possible; use a number in 0..1"),
        ((False, "localhost:1", 0, 0), "--process_id=0 is not possible"),
        ((True, None, None, None), "could not be joined"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(DeviceError, match=message):
        join_processes(*flags)


def test_no_flags_join_nothing():
    join_processes(False, None, None, None)
