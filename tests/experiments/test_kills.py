"""A run killed at random moments, also while it saves, ends as one that was never disturbed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import pflalign_jax as pfl

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(workdir, cache, place, rounds, *arguments, output=subprocess.PIPE):
    return subprocess.Popen(
        [
            sys.executable, "-m", "experiments.run", "--config=experiments/digits.py",
            f"--workdir={workdir}", "--devices=2", "--config.dataset.fraction=0.15",
            "--config.model.hidden=(12,)", "--config.cohort_size=7", f"--config.rounds={rounds}",
            "--config.eval_every=3", "--config.checkpoint_every=2",
            f"--config.client_state_in={place}", *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def finish(process):
    try:
        text, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, text


def being_saved(workdir):
    return list((workdir / "checkpoints").glob("*tmp*"))


def wait_until(condition, process):
    while process.poll() is None and not condition():
        time.sleep(0.001)


def killed(process, workdir, rng, while_saving):
    """Kill a run at a random moment; return what it was saving then."""
    size = workdir / "metrics.jsonl"
    before = size.stat().st_size if size.exists() else 0
    wait_until(lambda: size.exists() and size.stat().st_size > before, process)
    time.sleep(rng.uniform(0, 0.4))
    if while_saving:
        wait_until(lambda: being_saved(workdir), process)
        time.sleep(rng.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return being_saved(workdir)


def outcome(workdir):
    """Return everything that must be the same to the bit, without what is measured in seconds."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "fraction_of_matmul_peak")
    rows = [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows]
    run = pfl.load_run(workdir)
    models = [run.personal_params(name) for name in run.client_names]
    parameters = jax.tree.map(np.asarray, (run.global_params, models))
    return rows, (workdir / "clients.csv").read_bytes(), run.round, parameters


def assert_same(workdir, other):
    found, wanted = outcome(workdir), outcome(other)
    assert found[:3] == wanted[:3]
    jax.tree.map(np.testing.assert_array_equal, found[3], wanted[3])


def run_through_kills(tmp_path, cache, place, kills, rounds, seed):
    """Return how many kills came while it was saving, and the seconds lost per kill."""
    alone, often = tmp_path / "alone", tmp_path / "often"
    begin = time.monotonic()
    code, text = finish(start(alone, cache, place, rounds))
    undisturbed = time.monotonic() - begin
    assert code == 0, text
    rng, seen = random.Random(seed), []
    begin = time.monotonic()
    for kill in range(kills):
        process = start(often, cache, place, rounds)
        seen.append(killed(process, often, rng, while_saving=kill % 2 == 0))
        assert process.returncode == -signal.SIGKILL, "it had ended before it was killed"
    code, text = finish_after_a_torn_line(often, cache, place, rounds)
    lost = (time.monotonic() - begin - undisturbed) / kills
    assert code == 0, text
    assert f"going on in {often} after round" in text.replace("\n", "")
    assert "which is gone" in text.replace("\n", "")
    assert_same(often, alone)
    return sum(map(bool, seen)), lost


def finish_after_a_torn_line(workdir, cache, place, rounds):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"round": 7, "loss/tr')  # a line that was not whole
    return finish(start(workdir, cache, place, rounds))


def stop(process, workdir, signum):
    """Send a signal after a further evaluation; the run saves, says what to do, and ends."""
    metrics = workdir / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    wait_until(lambda: metrics.exists() and metrics.stat().st_size > before, process)
    process.send_signal(signum)
    code, text = finish(process)
    assert code == 128 + signum, text
    name = signal.Signals(signum).name
    assert f"stopped by {name} after round" in text and "goes on" in text
    assert "Traceback" not in text


def test_two_kills_and_a_signal(tmp_path, cache):
    """The short form of the tests below: each further process costs seconds."""
    alone, often = tmp_path / "alone", tmp_path / "often"
    with open("/dev/full", "w") as full:  # what cannot be printed stops nothing
        assert finish(start(alone, cache, "disk", 100, output=full))[0] == 0
    rng = random.Random(0)
    for while_saving in (True, False):
        killed(start(often, cache, "disk", 100), often, rng, while_saving)
    # Where tests run under nohup, SIGHUP is ignored.
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signum = signal.SIGTERM if ignored else signal.SIGHUP
    stop(start(often, cache, "disk", 100, "--config.checkpoint_every=1000"), often, signum)
    code, text = finish_after_a_torn_line(often, cache, "disk", 100)
    assert code == 0 and f"going on in {often} after round" in text.replace("\n", ""), text
    assert_same(often, alone)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["device", "disk"])
def test_kills(place, tmp_path, cache):
    run_through_kills(tmp_path, cache, place, 2, 60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_twenty_kills(place, tmp_path, cache):
    assert finish(start(tmp_path / "warm", cache, place, 3))[0] == 0  # programs are compiled
    saving, lost = run_through_kills(tmp_path, cache, place, 20, 400, seed=1)
    print(f"{place}: {saving} of 20 kills while saving; {lost:.2f} s lost per kill")
    assert saving


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]],
    ids=["once", "often"],
)
def test_terminated_it_saves_and_goes_on(signals, tmp_path, cache):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert finish(start(alone, cache, "disk", 40))[0] == 0
    for signum in signals:
        process = start(stopped, cache, "disk", 40, "--config.checkpoint_every=1000")
        stop(process, stopped, signum)
    assert finish(start(stopped, cache, "disk", 40))[0] == 0
    assert_same(stopped, alone)
