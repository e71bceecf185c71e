"""What a comparison leaves of its winners: the commands that repeat them, and their models."""

import shlex
import types

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import pflalign_jax as pfl
from experiments.compare import comparison, repeat, trials
from pflalign_jax.cli import flags as cli
from pflalign_jax.runs import files
from pflalign_jax.runs.config import ConfigError, resolve
from pflalign_jax.runs.reopening import reopen

GIVEN = ["--config=experiments/digits.py", "--config.rounds=3", "--workdir=runs/x", "--seeds", "2",
         "--config.dataset.fraction=0.3", "--config.compare.grid=(0.1,0.2)", "--config.seed=4",
         "--config.compare.adapt=True", "--config.algorithm.name=fedprox", "--devices=1",
         "--config.model.name=logistic", "--config.model.hidden=None"]  # fmt: skip


def config_of(arguments):
    """Return the config that a command's flags give."""
    given = [word for word in arguments if word.startswith("--config")]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["x", *given])
    values(["x", *given])
    return values["config"].value


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("method", "own"), [("pflalign", None), ("fedprox", 0.5), ("sign", None), ("body", None)]
)
def test_the_command_of_a_setting_gives_its_config(method, own):
    config = config_of(GIVEN)
    with config.unlocked():
        config.compare.variants.sign = {"name": "pflalign", "correction": "sign", "beta": 0.5}
        config.compare.variants.body = {"name": "fedrep", "head": ("Dense_0",), "body_tx": None}
    plan = comparison.settings(config, method)
    plan.adapt_learning_rate = (0.1, 0.2)
    setting = trials.Setting(method, plan, 0.2, "mu", own)
    fields = repeat.changed_fields(comparison.plain(config), setting.config(1).to_dict())
    words = shlex.split(repeat.run_command_of(GIVEN, fields))
    assert words[:3] == ["python", "-m", "experiments.run"] and "--devices=1" in words
    text = " ".join(words)
    assert not any(part in text for part in ("compare", "workdir", "seeds", "config.seed=4"))
    assert text.count("--config.algorithm.name") <= 1
    assert resolve(config_of(words[3:])).to_dict() == resolve(setting.config(1)).to_dict()


@pytest.fixture(scope="module")
def kept(config, tmp_path_factory):
    """A comparison of two methods with two seeds that keeps its best models."""
    root = tmp_path_factory.mktemp("kept")
    plan = config.copy_and_resolve_references()
    plan.compare.keep, plan.compare.grids.fedavg = "best", (0.1, 1e-6)
    return plan, root, comparison.compare(plan, ["fedavg"], 2, root)


def held(root):
    return sorted(path.parent.name for path in root.rglob("checkpoints"))


def test_the_models_of_the_chosen_setting_can_be_loaded(kept):
    _, root, (entry,) = kept
    assert held(root) == ["fedavg-0.1-0", "fedavg-0.1-1"]
    assert repeat.models_of(entry) == f"{root}/trials/fedavg-0.1-{{0,1}}"
    run = pfl.load_run(entry.runs[0])
    assert run.round == 2 and run.config["algorithm"]["name"] == "fedavg"
    assert run.predict(np.zeros((3, 8, 8, 1), np.uint8), client=0).shape == (3, 10)
    _, state = reopen(entry.runs[0])
    assert int(state.round) == 2
    lines = list(repeat.told([entry], {"fedavg": "the command"}))
    assert lines[1] == f"  fedavg: {root}/trials/fedavg-0.1-{{0,1}}" and "load_run" in lines[-1]


def test_what_is_kept_stays_whatever_comes_after_it(kept, config):
    """A comparison that keeps nothing takes the same trials for done, and deletes nothing."""
    plan, root, before = kept
    states = {path: path.stat().st_mtime_ns for path in root.rglob("checkpoints/**/*")}
    assert states and comparison.compare(plan, ["fedavg"], 2, root) == before
    plain = plan.copy_and_resolve_references()
    plain.compare.keep = "none"
    comparison.compare(plain, ["fedavg"], 2, root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("checkpoints/**/*")} == states


def test_states_that_another_command_keeps_are_not_deleted(config, tmp_path):
    """As those of `experiments.certificates`, also where they were not finished."""
    plan, built = comparison.settings(config, "fedavg"), {}
    dataset = comparison.build_dataset(resolve(plan))
    setting = trials.Setting("fedavg", plan, 0.1)
    keeping = trials.TrialContext(tmp_path, dataset, keep="all")
    trials.run_trials(setting, [0], keeping, built)
    plain = config.copy_and_resolve_references()  # keep = none
    plain.compare.grids.fedavg = (0.1, 0.2)
    comparison.compare(plain, ["fedavg"], 1, tmp_path)
    assert held(tmp_path) == ["fedavg-0.1-0"]
    # The other way round: what a comparison has begun is kept by one that wants it.
    path = setting.path(tmp_path, 7)
    files.create(path)
    files.write_trial(path, setting.name(7), temporary=True)
    trials.run_trials(setting, [7], keeping, built)
    assert not files.has_temporary_states(path) and files.read_trial(path) == setting.name(7)
    assert held(tmp_path) == ["fedavg-0.1-0", "fedavg-0.1-7"]


def test_a_killed_search_has_the_states_of_its_best(config, tmp_path, monkeypatch):
    plan = config.copy_and_resolve_references()
    plan.compare.keep, plan.compare.grids.fedavg = "best", (0.1, 0.2, 1e-6)
    run, ran = comparison.run_trials, []

    def killed(setting, *rest):
        ran.append(setting.learning_rate)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(setting, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "run_trials", killed)
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(plan, ["fedavg"], 1, tmp_path)
    assert ran == [1e-6, 0.1, 0.2] and held(tmp_path) == ["fedavg-0.1-0"]
    (entry,) = comparison.compare(plan, ["fedavg"], 1, tmp_path)
    assert held(tmp_path) == [path.name for path in entry.runs]


def test_models_are_kept_by_themselves_where_they_are_small(config):
    plan = config.copy_and_resolve_references()
    plan.compare.keep = None
    # Of every run up to three: two of the latest rounds and the best.
    assert comparison.keeps_models(plan, 2**31 // 3)
    assert not comparison.keeps_models(plan, 2**31 // 3 + 1)
    plan.checkpoint_every = 0
    assert not comparison.keeps_models(plan, 1)
    for keep, message in (("best", "needs checkpoints"), ("all", "'all' is unknown")):
        plan.compare.keep = keep
        with pytest.raises(ConfigError, match=message):
            comparison.keeps_models(plan, 1)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_grid_that_is_given_wins_over_those_of_files(monkeypatch):
    def grids(*given):
        config = config_of(["--config=experiments/ablation.py", *given])
        monkeypatch.setattr(cli, "CONFIG", types.SimpleNamespace(value=config))
        cli._given_grid_wins(["x", "--config=experiments/ablation.py", *given])
        return {
            name: comparison.grid_of(config, name, comparison.settings(config, name))
            for name in ("pflalign", "fedavg", "sign-50")
        }

    built_in = (0.5, 1.0, 2.0)
    assert grids()["pflalign"] == grids()["sign-50"] != grids()["fedavg"]
    assert set(grids("--config.compare.grid=0.01,1").values()) == {(0.01, 1.0)}
    one = grids("--config.compare.grid=0.2", "--config.compare.grids.pflalign=(3.0,)")
    assert one == {"pflalign": (3.0,), "fedavg": (0.2,), "sign-50": (3.0,)}
    assert grids("--config.compare.grids.fedavg=(3.0,)")["pflalign"] == built_in


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": (0.1, "x")}, r"compare\.grid=\(0\.1, 'x'\) is not allowed"),
        ({"grid": ()}, r"compare\.grid=\(\) has no step size"),
        ({"grids.fedavg": "a"}, r"compare\.grids\.fedavg='a' is not allowed"),
    ],
)
def test_what_is_no_grid_is_refused(config, fields, message, tmp_path):
    wrong = config.copy_and_resolve_references()
    wrong.compare.grids.fedavg = None
    wrong.compare.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        comparison.compare(wrong, ["fedavg"], 1, tmp_path)
    assert not list(tmp_path.iterdir())
