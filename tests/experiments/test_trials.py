"""Trials of a comparison: shared programs, states, ends."""

import json

import jax
import pytest

from experiments.compare import comparison, trials
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.runs import build, files, loop, round_files
from pflalign_jax.runs.config import ConfigError, is_number, resolve
from pflalign_jax.runs.signals import StoppedError


def test_trials_that_differ_in_numbers_share_their_programs(config, tmp_path):
    plan, built = comparison.settings(config, "fedprox"), {}
    setting = trials.Setting("fedprox", plan, 0.1, "mu")
    dataset = build.build_dataset(resolve(plan))
    context = trials.TrialContext(tmp_path, dataset)
    for one in (setting, setting._replace(learning_rate=0.2, own=1.0)):
        (trial,) = trials.run_trials(one, [1], context, built)
        experiment = build.build(one.config(1), None, dataset)
        alone = loop.train(loop.RunPlan(experiment)).rows[-1]
        found = round_files.read_rows(trial.path)[-1]
        name = "loss/test/personal/adapted/mean"
        assert found[name] == pytest.approx(alone[name], rel=1e-5)
        assert found["bytes_down"] == alone["bytes_down"]
    assert len(built) == 1
    with pytest.raises(ConfigError, match=r"learning_rate=-1\.0"):
        trials.run_trials(setting._replace(learning_rate=-1.0), [0], context, built)
    assert not is_number("fedrep", "head_epochs")
    assert is_number("ditto", "personal_tx")


def test_whole_numbers_of_a_config_give_way_to_others(config):
    """As ``--config.algorithm.learning_rate=1`` is one, and 0.1 of a search is none."""
    given = config.copy_and_resolve_references()
    given.algorithm.learning_rate, given.algorithm.beta = 1, 1
    with given.unlocked():
        given.compare.variants.half = {"name": "pflalign", "beta": 0.5}
    plan = trials.Setting("half", comparison.settings(given, "half"), 0.1).config(0)
    assert plan.algorithm.learning_rate == 0.1 and plan.algorithm.beta == 0.5


def test_trials_leave_no_states(config, tmp_path, monkeypatch):
    """Also where a kill came between the end of a trial and what follows it."""
    config = config.copy_and_resolve_references()
    config.client_state_in, config.checkpoint_every = "disk", 1
    released, left = [], []
    monkeypatch.setattr(trials, "release_memory", lambda: released.append(1))

    def killed(workdir):
        left.append(sorted(path.name for path in workdir.iterdir() if path.is_dir()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "drop_temporary_states", killed)
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(config, ["fedavg"], 2, tmp_path)
    assert left == [["checkpoints", "client_states", "plots"]]
    comparison.compare(config, ["fedavg"], 2, tmp_path)
    assert len(list(tmp_path.rglob("summary.json"))) == 2
    assert not [*tmp_path.rglob("checkpoints"), *tmp_path.rglob("client_states")]
    assert len(released) == 2  # before every trial that was run


def test_seeds_as_one_program(config, tmp_path, monkeypatch):
    """They end as one by one, also when stopped on the way."""
    config = config.copy_and_resolve_references()
    config.rounds, config.eval_every, config.checkpoint_every = 3, 1, 1
    driven, said, train_together = [], [], trials.train_together
    monkeypatch.setattr(
        trials,
        "train_together",
        lambda plans: driven.append(len(plans)) or train_together(plans),
    )
    progress = ComparisonProgress(said.append)
    alone, together = tmp_path / "alone", tmp_path / "together"
    config.compare.seeds_together = False
    (expected,) = comparison.compare(config, ["fedavg"], 3, alone, progress)
    config.compare.seeds_together = True
    signals = iter([0] * 3 + [15] * 9)  # after the search, and the first round of both
    with pytest.raises(StoppedError, match="after round 1"):
        comparison.compare(config, ["fedavg"], 3, together, progress, lambda: next(signals))
    (entry,) = comparison.compare(config, ["fedavg"], 3, together, progress)
    assert driven == [1] * 3 + [1, 2, 2] and said[-2:] == [
        f"going on in {together / 'trials' / f'fedavg-0.1-{seed}'} after round 1 of 3"
        for seed in (1, 2)
    ]
    for name, values in expected.scores.items():
        assert entry.scores[name] == pytest.approx(values, abs=1e-3)
    for seed in range(3):
        one, other = (
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(tmp_path.glob(f"*/trials/fedavg-0.1-{seed}/metrics.jsonl"))
        )
        assert [row["round"] for row in one] == [row["round"] for row in other] == [1, 2, 3]
        for a, b in zip(one, other, strict=True):
            assert a["loss/train/mean"] == pytest.approx(b["loss/train/mean"], rel=1e-4)
    assert not list(tmp_path.rglob("checkpoints"))


def test_when_seeds_are_one_program(config):
    def as_one(wanted=None, **fields):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        return trials.as_one([build.build(changed)] * 2, wanted)

    assert as_one(True) and not as_one(False)
    assert as_one() == (jax.default_backend() != "cpu")
    assert not as_one(True, client_state_in="host")
    seeded = {"messages.attack": "sign_flip", "messages.corrupted": 1}
    assert not as_one(True, **seeded)


def test_a_diverged_trial_is_worst_and_noted(config, tmp_path, monkeypatch):
    wild = config.copy_and_resolve_references()
    wild.compare.grids.fedavg = (0.1, 1e30)
    wild.model.name, wild.model.hidden = "mlp", (4,)
    wild.checkpoint_every = 1

    def killed(workdir):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # when it has diverged, before it is noted
        patch.setattr(files, "write_diverged", killed)
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(wild, ["fedavg"], 1, tmp_path)
    (entry,) = comparison.compare(wild, ["fedavg"], 1, tmp_path)
    assert entry.learning_rate == 0.1 and entry.searched[1e30] is None
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_schedule_of_other_rounds_is_another_program(config, tmp_path):
    plan = comparison.settings(config, "fedavg")
    dataset, built = build.build_dataset(resolve(plan)), {}
    for plan.learning_rate_schedule, programs in (("constant", 1), ("cosine", 3)):
        for rounds in (1, None):
            setting = trials.Setting("fedavg", plan, 0.1, rounds=rounds)
            trials._build(setting, 0, tmp_path, dataset, built)
        assert len(built) == programs
