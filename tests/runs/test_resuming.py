"""A run goes on in its workdir, bit for bit; what does not go together is refused by name."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest
from small_runs import built, go, interrupted, measured, same, small, stopped_after

import pflalign_jax as pfl
from experiments.compare import comparison
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.federated import StoreError
from pflalign_jax.runs import diagnostics_log, files, lock, resuming, signals
from pflalign_jax.runs.build import build
from pflalign_jax.runs.checkpoints import (
    CheckpointError,
    checkpoint_path,
    checkpoint_rounds,
    read_about,
)
from pflalign_jax.runs.hardware import MemoryExhaustedError
from pflalign_jax.runs.loop import RunPlan, train

pytestmark = [
    pytest.mark.usefixtures("no_peak"),
    # What orbax's own threads and tasks leave when they fail.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collected():
    """Let no later test find what a failed one left."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run stopped after round 3, with checkpoints of rounds 2 and 3, for tests to copy."""
    return interrupted(tmp_path_factory.mktemp("half") / "run", small())


@pytest.fixture
def run(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


def test_it_goes_on_and_says_so(run, alone):
    assert checkpoint_rounds(run / "checkpoints") == [2, 3]
    said = []
    outcome = go(run, small(), said)
    assert said == [f"going on in {run} after round 3 of 6"]
    assert [row["round"] for row in outcome.rows] == [2, 4, 6]
    totals = [row["seconds_total"] for row in outcome.rows]
    assert totals == sorted(totals)
    same(run, alone)


def test_going_on_with_another_version_is_told_in_one_line(run, monkeypatch):
    assert read_about(run / "checkpoints", 3)["versions"]["pflalign-jax"] == pfl.__version__
    said, now = [], pfl.__version__
    monkeypatch.setattr(pfl, "__version__", "9.9")
    outcome = go(run, small(), said)
    assert said == [
        f"going on in {run} after round 3 of 6 (pflalign-jax was {now}, is 9.9: numbers may "
        "differ from here on)"
    ]
    assert outcome.summary["versions"]["pflalign-jax"] == "9.9"


def test_damaged_ends_of_files_come_again(run, alone):
    for name, text in (("metrics.jsonl", '{"round": 4, "sec'), ("clients.csv", "4,0,test,glo")):
        with (run / name).open("a") as file:
            file.write(text)
    go(run, small())
    same(run, alone)


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_used(run, alone):
    for file in (checkpoint_path(run / "checkpoints", 3) / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    said = []
    go(run, small(), said)
    assert "00000003 is damaged" in said[0] and "set aside as unusable-00000003" in said[0]
    assert said[1] == f"going on in {run} after round 2 of 6"
    same(run, alone)


def test_without_a_usable_checkpoint_nothing_is_overwritten(run):
    for r in (2, 3):
        meta = checkpoint_path(run / "checkpoints", r) / "meta" / "metadata"
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "pflalign_jax_checkpoint": 2}))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(files.WorkdirError, match=r"no checkpoint in .* can be used: .*0003 has "
                       r"format 2, this version.*reads format 1.*0002 has"):  # fmt: skip
        go(run, small())
    assert (run / "metrics.jsonl").read_bytes() == before


def test_killed_before_the_first_checkpoint_it_starts_again(run, alone):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    said = []
    go(run, small(), said)
    assert "it starts again from round 0" in said[0]
    same(run, alone)


def test_killed_after_the_last_checkpoint_it_only_finishes(alone, tmp_path):
    path = shutil.copytree(alone, tmp_path / "run")
    (path / "summary.json").unlink()
    outcome = go(path, small())
    summary = json.loads((alone / "summary.json").read_text())
    assert json.loads((path / "summary.json").read_text()) == summary == outcome.summary
    name = "test/personal/adapted"
    score, mean = outcome.scores[name], summary["last"][f"accuracy/{name}/mean"]
    assert score.accuracy[score.examples > 0].mean() == pytest.approx(mean, abs=1e-6)


def test_a_run_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(signals.StoppedError):
        go(tmp_path, small(checkpoint_every=0), asked=stopped_after(3))
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(files.WorkdirError, match="saved no checkpoints; it is not overwritten"):
        go(tmp_path, small())


def observed(path):
    lines = (path / "diagnostics.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines]


def test_diagnostics_are_written_however_a_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics_log, "PAUSE", 1e9)
    config = small(diagnostics=True, checkpoint_every=0)
    assert observed(interrupted(tmp_path / "without", config)) == [1, 2, 3]
    config = small(diagnostics=True)
    path = interrupted(tmp_path / "run", config)
    assert observed(path) == [1, 2, 3]
    go(path, config)
    assert observed(path) == [1, 2, 3, 4, 5, 6]


def test_another_config_is_refused_with_what_differs(run):
    config = small(batch_size=5)
    config.algorithm.learning_rate = 1.0
    with pytest.raises(
        files.WorkdirError,
        match=r"another config: config\.algorithm\.learning_rate was 3\.0, is 1\.0; "
        r"config\.batch_size was 10, is 5\. Go on with its own config",
    ):
        go(run, config)
    with pytest.raises(files.WorkdirError, match=r"after round 3 already; config\.rounds=2"):
        go(run, small(rounds=2))


def test_more_rounds_end_as_if_they_had_been_wanted_from_the_start(tmp_path, alone):
    path = interrupted(tmp_path / "run", small(rounds=5), 4)
    go(path, small(rounds=6, client_chunk=1, checkpoints_kept=1))
    same(path, alone)
    assert json.loads((path / "config.json").read_text())["rounds"] == 6


def test_other_data_are_refused(run):
    config = small()
    config.dataset.seed = 9
    with pytest.raises(files.WorkdirError, match=r"config\.dataset\.seed was 0, is 9"):
        go(run, config)
    dataset = built(run, small()).dataset
    for changed, message in (
        (dataset._replace(y=(dataset.y + 1) % 10), "partition_hash differ"),
        (dataset._replace(x=dataset.x + 1), "features_crc32_all differ"),
    ):
        with pytest.raises(files.WorkdirError, match=f"other data than digits is now: {message}"):
            go(run, small(), dataset=changed)


def test_a_client_that_is_gone_is_named(run):
    dataset = built(run, small()).dataset
    names = dataset.client_names.copy()
    names[2] = "new"
    with pytest.raises(files.WorkdirError, match="gone are clients 2; new are clients new"):
        go(run, small(), dataset=dataset._replace(client_names=names))
    train_split = dataset.splits["train"]
    less = train_split._replace(
        indices=np.delete(train_split.indices, train_split.offsets[3]),
        offsets=train_split.offsets - (np.arange(7) > 3),
    )
    fewer = dataset._replace(splits={**dataset.splits, "train": less})
    with pytest.raises(files.WorkdirError, match="other examples have clients 3"):
        go(run, small(), dataset=fewer)


def test_a_file_that_was_cut_since_is_named(run):
    (run / "clients.csv").write_text("")
    with pytest.raises(files.WorkdirError, match=r"clients\.csv has 0 bytes, \d+ when the check"):
        go(run, small())


def test_client_states_on_disk_that_are_gone_are_told(tmp_path):
    config = small(client_state_in="disk")
    path = interrupted(tmp_path / "run", config)
    with pytest.MonkeyPatch.context() as patch:
        load = resuming.load_checkpoint

        def of_two(*arguments):
            saved, about = load(*arguments)
            return saved, {**about, "processes": 2}

        patch.setattr(resuming, "load_checkpoint", of_two)
        with pytest.raises(files.WorkdirError, match="disks of 2 processes; go on with as many"):
            go(path, config)
    shutil.rmtree(path / "client_states")
    with pytest.raises(StoreError, match="does not hold client states after round 2"):
        go(path, config)


@pytest.mark.parametrize("place", [pytest.param("host", marks=pytest.mark.slow), "disk"])
def test_states_in_a_store_go_on_as_well(place, tmp_path):
    config = small(client_state_in=place)
    path, alone = interrupted(tmp_path / "run", config), tmp_path / "alone"
    go(path, config)
    go(alone, config)
    same(path, alone)


@pytest.mark.parametrize(
    ("before", "after"),
    [("host", "device"), pytest.param("device", "host", marks=pytest.mark.slow)],
)
def test_states_go_on_where_there_is_room(before, after, tmp_path, alone):
    """Where the machine chooses another place; sums may then be rounded otherwise."""
    path = interrupted(tmp_path / "run", small(client_state_in=before))
    go(path, small(client_state_in=after))
    for row, other in zip(measured(path), measured(alone), strict=True):
        assert row == pytest.approx(other, rel=1e-3, nan_ok=True)


def test_the_clock_sets_the_pace(tmp_path):
    go(tmp_path, small(checkpoint_every=None, checkpoints_kept=1))
    rows = measured(tmp_path)
    key = "accuracy/validation/personal/adapted/mean"
    best = max(rows, key=lambda row: row[key])["round"]
    assert checkpoint_rounds(tmp_path / "checkpoints") == sorted({best, 6})


def test_a_full_disk_is_told_and_nothing_is_lost(run, alone, monkeypatch):
    metrics = run / "metrics.jsonl"
    kept = metrics.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(files.WorkdirError, match=r"jsonl cannot be written: No space left .* "
                           f"--workdir={run} goes on from the checkpoint after"):  # fmt: skip
            go(run, small())
    assert metrics.read_bytes().startswith(kept)
    go(run, small())
    same(run, alone)


def test_a_checkpoint_that_finds_no_room_is_told_and_those_before_are_whole(run, alone):
    blocked = run / "checkpoints"
    moved = blocked.rename(run / "moved")
    shutil.copytree(moved, blocked)
    experiment = built(run, small())
    start = resuming.prepare(run, experiment, lambda text: None)

    def away(done, row):
        if done == 4:  # as if the disk had been lost
            shutil.rmtree(blocked)
            blocked.write_text("")

    with pytest.raises(CheckpointError, match=r"checkpoints cannot take a checkpoint; those befor"):
        train(RunPlan(experiment, run, start, blocked, away))
    blocked.unlink()
    moved.rename(blocked)
    go(run, small())
    same(run, alone)


def test_out_of_memory_advises_a_smaller_chunk(monkeypatch):
    experiment = build(small(client_chunk=4))

    def too_much(self, states, score):
        return jax.numpy.zeros((2**50,)).block_until_ready()

    monkeypatch.setattr(type(experiment.federation), "run_rounds", too_much)
    with pytest.raises(MemoryExhaustedError, match=r"--config\.client_chunk=2 \(now 4\).*goes on"):
        train(RunPlan(experiment))


def test_two_runs_in_one_workdir(tmp_path):
    said = []
    with lock.locked(tmp_path, said.append):
        with pytest.raises(files.WorkdirError, match=r"is in use by process \d+ on .* since 20"):
            with lock.locked(tmp_path):
                pass
    with lock.locked(tmp_path, said.append):
        assert said == []
    (tmp_path / "lock").write_text("process 1 on elsewhere since 2020-01-01 00:00:00\n")
    with lock.locked(tmp_path, said.append):
        assert said[0].endswith("left by process 1 on elsewhere since 2020-01-01 00:00:00, which "
                                "is gone")  # fmt: skip


def test_parts_of_one_command_share_a_workdir_with_nobody_else(tmp_path):
    said = []
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    with lock.locked(tmp_path, said.append, shared=True):
        with lock.locked(tmp_path, said.append, shared=True):
            pass
        with pytest.raises(files.WorkdirError, match="is in use by other processes; wait for"):
            with lock.locked(tmp_path):
                pass
        assert len(said) == 1 and "left by process 1 on elsewhere, which is gone" in said[0]
    with lock.locked(tmp_path, said.append):
        with pytest.raises(files.WorkdirError, match=r"is in use by process \d+ on "):
            with lock.locked(tmp_path, shared=True):
                pass
    assert len(said) == 1


def test_a_second_signal_does_what_it_always_did():
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            with signals.asked_to_stop() as asked:
                assert asked() == 0
                signal.raise_signal(signal.SIGINT)
                assert asked() == signal.SIGINT
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_comparison_goes_on_inside_a_trial(tmp_path):
    config = small(checkpoint_every=1)
    config.compare.grid, config.compare.extensions = (0.1,), 0
    config.compare.keep = "none"
    said = []
    arguments = (config, ["fedavg"], 1, tmp_path, ComparisonProgress(said.append))
    with pytest.raises(signals.StoppedError):
        comparison.compare(*arguments, stopped_after(3))
    trial = tmp_path / "trials" / "fedavg-0.1-0"
    assert checkpoint_rounds(trial / "checkpoints") == [2, 3]
    comparison.compare(*arguments)
    assert f"going on in {trial} after round 3 of 6" in said
    assert (trial / "summary.json").exists() and not (trial / "checkpoints").exists()
    assert [row["round"] for row in measured(trial)] == [2, 4, 6]
