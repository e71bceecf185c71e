"""Studies of `experiments.sweep --trials`: what Optuna chooses from, and its trials."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.sweep import cells, pages, study
from experiments.sweep.grid import has_ranges
from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.cli.plots import new_figure
from pflalign_jax.errors import UserError
from pflalign_jax.runs.config import ConfigError
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.headline import ACCURACY
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.signals import StoppedError

GRID = {"algorithm.learning_rate": ["0.01..10:log"], "algorithm.beta": ["0.5", "0.9"]}

journal = pytest.importorskip("optuna").storages.journal


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("algorithm.learning_rate", "1e-3..1.:log", study.Range(0.001, 1.0, True, False)),
        ("rounds", "5..20", study.Range(5, 20, False, True)),
        # Fields of fractions have them whatever the ends look like.
        ("algorithm.beta", "0..1", study.Range(0, 1, False, False)),
        ("learning_rate_final", "0..1", study.Range(0, 1, False, False)),
        ("dataset.alpha", ".1..1", study.Range(0.1, 1, False, False)),
        ("algorithm.personal_tx", "0..2", study.Range(0, 2, False, False)),
        ("messages.attack_factor", "-3..-1", study.Range(-3, -1, False, False)),
        ("learning_rates.pflalign", "1..10:log", study.Range(1, 10, True, False)),
        # And those of whole numbers.
        ("batch_size", "1e1..100.:log", study.Range(10, 100, True, True)),
        ("messages.corrupted", "1.0..3.0", study.Range(1, 3, False, True)),
        # Where no type is known the ends tell.
        ("compare.extensions", "1..3", study.Range(1, 3, False, True)),
        ("compare.extensions", "1.0..3.0", study.Range(1, 3, False, False)),
    ],
)
def test_ranges(config, name, text, wanted):
    assert study.space_of(config, {name: [text]}) == {name: wanted}


def test_a_range_is_of_the_algorithm_that_the_sweep_names(config):
    grid = {"algorithm.alpha": ["0..1"], "algorithm.name": ["apfl"]}
    assert study.space_of(config, grid)["algorithm.alpha"] == study.Range(0, 1, False, False)


def test_a_narrow_range_has_more_than_its_ends():
    narrow = study.Range(0.99991, 0.99999, False, False)
    texts = [narrow.text(number) for number in np.linspace(narrow.low, narrow.high, 50)]
    assert len(set(texts)) == 50 and all(narrow.low <= float(text) <= narrow.high for text in texts)


def test_what_is_no_range_is_a_value(config):
    grid = {"dataset.path": ["../1", "..", "1..", "a..b"], "model.hidden": ["(1,)"]}
    assert not has_ranges(grid) and study.space_of(config, grid) == grid


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1..0.5"], r"--sweep\.rounds=1\.\.0\.5 is no range: its first number must be the small"),
        (["2..2"], "its first number must be the smaller one"),
        (["0..1:log"], "must begin above 0"),
        (["1.5..3"], r"--sweep\.rounds=1\.5\.\.3 is no range: the field has whole numbers only"),
        (["1..1e400"], r"numbers go up to 3\.4e\+38"),
        (["0..1", "3"], r"=0\.\.1,3 mixes a range with other values"),
        (["3", "0..1"], "mixes a range with other values"),
    ],
)
def test_a_range_that_cannot_be_is_refused(config, texts, message):
    with pytest.raises(FlagError, match=message):
        study.space_of(config, {"rounds": texts})


def test_a_range_needs_trials():
    with pytest.raises(FlagError, match=r"beta=0\.\.1 is a range; .* by --trials=N, or list"):
        study.refuse_ranges({"rounds": ["5"], "algorithm.beta": ["0..1"]})


def test_both_ends_of_a_range_are_checked_before_any_trial(config):
    space = study.space_of(config, {"rounds": ["1", "2"], "algorithm.beta": ["0.5..1.5"]})
    with pytest.raises(ConfigError, match=r"^rounds=1, algorithm\.beta=1\.5: .*beta"):
        study.ends_of(config, space, search=False)
    with pytest.raises(FlagError, match="no field to vary"):
        study.ends_of(config, {}, search=False)
    space = study.space_of(config, {"rounds": ["1", "2"], "algorithm.beta": ["0.5..0.9"]})
    ends = {str(each) for each in study.ends_of(config, space, search=False)}
    assert ends == {f"rounds={r}, algorithm.beta={b}" for r, b in [(1, 0.5), (2, 0.5), (1, 0.9)]}


@pytest.fixture
def trained(monkeypatch):
    """Trials whose score is best at step size 0.3 and beta 0.9, without training."""
    trained = []

    def run(sweep, each, cache, progress, stop):
        if stop():
            raise StoppedError(15, 1)
        rate, beta = (float(each.values[name]) for name in GRID)
        trained.append(str(each))
        score = 90.0 - 20 * math.log10(rate / 0.3) ** 2 + 5 * (beta == 0.9)
        diverged = int(rate > 3)
        scores = [] if diverged else [score]
        return cells.Result(each, ACCURACY, rate, False, scores, scores, diverged, 0.1, {})

    monkeypatch.setattr(cells, "_run", run)
    return trained


def opened(config, root, grid=GRID):
    root.mkdir(exist_ok=True)
    sweep = cells.Sweep(config, 1, False, root)
    return study.open_study(sweep, grid, study.space_of(config, grid))


def test_a_study_comes_near_the_best_and_goes_on(config, tmp_path, trained):
    whole, left = study.run_trials(opened(config, tmp_path / "a"), 24, ComparisonProgress())
    assert left == 0 and len(whole) == 24
    best = pages.ranked(whole)[0]
    assert 0.1 < best.learning_rate < 1 and best.combination.values["algorithm.beta"] == "0.9"
    rates = [result.learning_rate for result in whole]
    assert all(len(f"{rate:g}".lstrip("0.").replace(".", "")) <= 4 for rate in rates)
    # After ten random ones it looks where it was good, and not where a seed diverged.
    scores = [result.validation[0] if not result.diverged else -math.inf for result in whole]
    assert np.median(scores[10:]) > np.median(scores[:10]) and min(scores[:10]) == -math.inf
    better = [result.combination.values["algorithm.beta"] == "0.9" for result in whole]
    assert np.mean(better[10:]) > np.mean(better[:10]) + 0.2
    assert max(scores[10:]) == max(scores)
    first = list(trained)
    # Stopped in the middle of its tenth trial, then run to more and more trials: the same study.
    trained.clear()
    with pytest.raises(StoppedError):
        study.run_trials(
            opened(config, tmp_path / "b"), 24, ComparisonProgress(), lambda: len(trained) == 9
        )
    for trials in (12, 24, 24):
        again, _ = study.run_trials(opened(config, tmp_path / "b"), trials, ComparisonProgress())
    assert trained == first and again == whole


def test_a_trial_of_another_process_is_left_to_it(config, tmp_path, trained):
    mine = opened(config, tmp_path)
    numbers = mine.numbers(2)
    theirs = mine.combination(next(numbers))
    mine.sweep.path(theirs).mkdir(parents=True)
    with locked(mine.sweep.path(theirs)):
        found, left = study.run_trials(mine, 3, ComparisonProgress())
    assert (len(found), left) == (2, 1) and str(theirs) not in trained
    found, left = study.run_trials(opened(config, tmp_path), 3, ComparisonProgress())
    assert (len(found), left) == (3, 0) and found[0].combination.values == theirs.values


def test_a_few_trials_lie_apart(config, tmp_path, trained):
    found, _ = study.run_trials(opened(config, tmp_path), 4, ComparisonProgress())
    rates = np.log10([result.learning_rate for result in found])
    assert np.ptp(rates) > 1  # of 3, from 0.01 to 10


def test_a_process_killed_while_it_asked_leaves_nothing_behind(config, tmp_path, trained):
    mine = opened(config, tmp_path)
    mine.asked.ask()  # without its values
    found, left = study.run_trials(mine, 3, ComparisonProgress())
    assert (len(found), left, len(mine.asked.trials)) == (3, 0, 4)


def test_what_is_chosen_twice_is_run_once(config, tmp_path, trained):
    grid = {"algorithm.learning_rate": ["0.1", "1"], "algorithm.beta": ["0.9"]}
    found, left = study.run_trials(opened(config, tmp_path, grid), 8, ComparisonProgress())
    assert (len(found), left, len(trained)) == (2, 0, 2)


def test_a_study_of_other_fields_or_a_damaged_one_is_named(config, tmp_path):
    opened(config, tmp_path)
    other = GRID | {"algorithm.beta": ["0.5"]}
    with pytest.raises(WorkdirError, match=r"with .*--sweep\.algorithm\.beta=0\.5,0\.9; choose"):
        opened(config, tmp_path, other)
    for damaged in ('{"op_code": 99}\nno json\n', "3\n"):
        (tmp_path / study.JOURNAL).write_text(damaged)
        with pytest.raises(WorkdirError, match=r"study\.journal cannot be read \(.*put it back"):
            opened(config, tmp_path)


def test_a_line_that_a_killed_process_did_not_finish_is_cut(config, tmp_path, trained):
    whole, _ = study.run_trials(opened(config, tmp_path), 4, ComparisonProgress())
    path = tmp_path / study.JOURNAL
    path.write_bytes(path.read_bytes()[:-9])  # the score of the last trial
    again, left = study.run_trials(opened(config, tmp_path), 4, ComparisonProgress())
    assert (again, left, len(trained)) == (whole, 0, 4)


def test_a_lock_that_a_killed_process_left_is_taken(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = []

    def kill(file):
        killed.append(file)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        for lock in (journal.JournalFileOpenLock, journal.JournalFileSymlinkLock):
            release = lock.release
            patch.setattr(lock, "release", lambda it, free=release: None if killed else free(it))
        with pytest.raises(KeyboardInterrupt):
            opened(config, pathlib.Path("sweep"))
    # A clock that runs when it is looked at.
    monkeypatch.setattr(time, "monotonic", iter(range(200)).__next__)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    opened(config, pathlib.Path("sweep"))


def test_without_optuna_its_package_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--trials needs .* 'pflalign-jax\[optuna\]'"):
        opened(config, tmp_path)


def test_a_grid_of_any_size_is_compared_with_few_results(config, tmp_path, trained):
    found, _ = study.run_trials(opened(config, tmp_path), 1, ComparisonProgress())
    assert not pages.is_whole(found, {f"field_{i}": list("0123456789") for i in range(20)})


def test_pages_of_a_study(config, tmp_path, trained):
    found, _ = study.run_trials(opened(config, tmp_path), 8, ComparisonProgress())
    names = pages.write(tmp_path, found, GRID, "the command", "the run")
    assert names == ["sweep.md", "sweep.csv", "sweep.png"]
    assert "Best on validation of 8: " in (tmp_path / "sweep.md").read_text()
    figure = pages.slices(found, GRID)
    rates, betas = figure.axes[:2]
    assert (rates.get_xscale(), betas.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in betas.get_xticklabels()] == ["0.5", "0.9"]
    shown = [result for result in found if result.validation]
    points = rates.collections[0].get_offsets()
    assert points[:, 0].tolist() == [result.learning_rate for result in shown]
    assert points[:, 1].tolist() == [result.validation[0] for result in shown]
    lost = [result._replace(validation=[], diverged=1) for result in found]
    assert not len(pages.slices(lost, GRID).axes[0].collections[0].get_offsets())


def test_values_that_would_run_into_each_other_stand_aslant():
    def rotations(*values):
        axes = new_figure((2, 2)).subplots()
        pages._places(axes, values, values)
        return {label.get_rotation() for label in axes.get_xticklabels()}

    assert rotations("pflalign", "fedavg", "perfedavg", "scaffold") == {40}
    assert rotations("1", "2", "3") == {0}


@pytest.mark.slow
def test_processes_share_a_study(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--config=experiments/digits.py"]
    command += ["--sweep.algorithm.learning_rate=0.1..10:log", "--sweep.local_epochs=1..3"]
    command += ["--config.rounds=1", "--config.model.name=logistic", "--config.model.hidden=None"]
    command += ["--trials=6", "--seeds=2", f"--workdir={tmp_path / 'sweep'}"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "Best on validation of 6: " in "".join(said)
    results = list((tmp_path / "sweep" / "cells").glob("*/cell.json"))
    fields = [json.loads(path.read_text())["fields"] for path in results]
    epochs = {changed.get("local_epochs", 1) for changed in fields}
    assert 6 <= len(results) <= 7 and epochs <= {1, 2, 3}
