"""A finished run gets more rounds, and ends as one that had so many from the start."""

import json
import re
import shutil

import pytest
from small_runs import go, measured, same, small

from pflalign_jax.runs import files
from pflalign_jax.runs.checkpoints import checkpoint_rounds, delete_checkpoint
from pflalign_jax.runs.prolonging import knows_its_best

pytestmark = pytest.mark.usefixtures("no_peak")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run that was to have four rounds and has them, for tests to copy."""
    path = tmp_path_factory.mktemp("four") / "run"
    go(path, small(rounds=4))
    return path


@pytest.fixture
def run(four, tmp_path):
    return shutil.copytree(four, tmp_path / "run")


def summary_of(path):
    return json.loads((path / "summary.json").read_text())


def test_more_rounds_are_the_same_bits(run, alone):
    said = []
    outcome = go(run, small(), said)
    assert said == [f"going on in {run} after round 4 of 6"]
    same(run, alone)
    assert outcome.summary["last"]["round"] == 6
    best = [summary_of(path)["best_validation"]["round"] for path in (run, alone)]
    assert best[0] == best[1]
    assert json.loads((run / "config.json").read_text())["rounds"] == 6


def test_interrupted_meanwhile_it_is_an_unfinished_run(run, alone, monkeypatch):
    def away(*arguments):
        raise OSError("gone")

    with monkeypatch.context() as patch:  # after the summary is gone, before anything else
        patch.setattr(files, "named_write_errors", away)
        with pytest.raises(OSError, match="gone"):
            go(run, small())
    assert not files.is_finished(run)
    go(run, small())
    same(run, alone)


@pytest.mark.parametrize(
    ("every", "back"),
    [
        (1, "goes back to round 4: it holds a run whose round 5 was evaluated only because"),
        (None, "holds an unfinished run whose round 5 was .* the last; it starts again from rou"),
    ],
)
def test_a_round_that_was_evaluated_as_the_last_comes_again(every, back, tmp_path, alone):
    go(tmp_path, small(rounds=5, checkpoint_every=every))
    assert [row["round"] for row in measured(tmp_path)] == [2, 4, 5]
    if every is None:  # as if only the last one had been saved
        for round_index in checkpoint_rounds(tmp_path / "checkpoints")[:-1]:
            delete_checkpoint(tmp_path / "checkpoints", round_index)
    said = []
    go(tmp_path, small(checkpoint_every=every), said)
    assert re.search(back, said[0]), said
    same(tmp_path, alone)
    assert not list((tmp_path / "checkpoints").glob("unusable*"))


def test_it_does_not_go_back_past_what_was_the_best(four, tmp_path):
    path = shutil.copytree(four, tmp_path / "run")
    best = summary_of(path)["best_validation"]["round"]
    assert knows_its_best(path, 4)
    delete_checkpoint(path / "checkpoints", best)
    assert best == 4 or not knows_its_best(path, 4)


def test_what_cannot_have_more_rounds_is_told(run):
    for rounds in (4, 3):
        with pytest.raises(files.WorkdirError, match=r"holds a finished run of 4 rounds; "
                           r"it is not overwritten: go on with .*rounds above 4\)"):  # fmt: skip
            go(run, small(rounds=rounds))
    with pytest.raises(files.WorkdirError, match=r"holds a finished run of another config: config\."
                       r"batch_size was 10, is 5\. Go on"):  # fmt: skip
        go(run, small(batch_size=5))
    (run / "trial.json").write_text("{}")
    with pytest.raises(files.WorkdirError, match="of 4 rounds; it is not overwritten: choose"):
        go(run, small())
    (run / "trial.json").unlink()
    summary = (run / "summary.json").read_bytes()
    files.write_diverged(run)
    with pytest.raises(files.WorkdirError, match="rounds; it is not overwritten: choose another"):
        go(run, small())
    (run / "summary.json").write_bytes(summary)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(files.WorkdirError, match="4 rounds, without a checkpoint to go on from; i"):
        go(run, small())
    assert (run / "summary.json").read_bytes() == summary


def test_a_schedule_over_all_rounds_is_refused_by_name(run):
    config = json.loads((run / "config.json").read_text())
    config["learning_rate_schedule"] = "cosine"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(files.WorkdirError, match=r"a finished run .* config\.rounds was 4, is 6, "
                       r"and learning_rate_schedule='cosine' depends on it"):  # fmt: skip
        go(run, small(learning_rate_schedule="cosine"))
