"""A run goes on by its directory alone; signals end a command before, in and after its rounds."""

import json
import signal
import sys

import pytest
from ml_collections import config_flags

from pflalign_jax.cli import going_on, saved_config
from pflalign_jax.cli.command import FlagError, tells_how_to_go_on
from pflalign_jax.runs import ConfigError, RunError, default_config, factories, files, signals
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.lock import locked


def saved(path, algorithm="ditto", **fields):
    """Write the ``config.json`` that a run would have."""
    config = default_config(algorithm)
    config.update(fields)
    config.dataset.num_clients, config.model.hidden = 4, (8, 6)
    path.mkdir(exist_ok=True)
    resolved = resolve(config)
    files.write_json(path / "config.json", files.infinities_as_text(resolved.to_dict()))
    return resolved


def test_the_config_in_a_directory_is_that_of_its_run(tmp_path):
    wanted = saved(tmp_path, adapt_learning_rate=(0.1, 0.3))
    found = resolve(saved_config.get_config(str(tmp_path)))
    assert found.to_dict() == wanted.to_dict()
    assert found.model.hidden == (8, 6) and found.adapt_learning_rate == (0.1, 0.3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how ml_collections loads a file
def test_flags_change_it(tmp_path):
    saved(tmp_path)
    argv = ["run", f"--workdir={tmp_path}", "--config.rounds=7", "--config.client_chunk=2"]
    given = going_on.with_config(argv)
    assert given[1].endswith(f"saved_config.py:{tmp_path}") and given[2:] == argv[1:]
    from absl import flags

    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", given)  # where ml_collections looks for fields
        values(given)
    assert config.value.rounds == 7 and config.value.client_chunk == 2
    assert config.value.algorithm.name == "ditto"


def test_a_config_or_no_directory_is_left_alone():
    for argv in (["run"], ["run", "--config=a.py", "--workdir=b"]):
        assert going_on.with_config(argv) is argv


def test_directories_that_hold_no_run(tmp_path):
    with pytest.raises(FlagError, match="holds no run to go on with; for a new one pass --config"):
        going_on.with_config(["run", f"--workdir={tmp_path}"])
    (tmp_path / "trials").mkdir()
    files.write_command(tmp_path, "python -m experiments.compare --config=a.py")
    with pytest.raises(FlagError, match=r"a comparison; it goes on .*compare --config=a\.py"):
        going_on.with_config(["run", f"--workdir={tmp_path}"])


def test_code_of_others_is_not_called(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["algorithm"]["name"] = "no_such_module:method"
    (tmp_path / "config.json").write_text(json.dumps(config))
    argv = ["run", f"--workdir={tmp_path}"]
    with pytest.raises(
        RunError, match=r"no_such_module:method, which is code outside .*--modules="
    ):
        going_on.with_config(argv)
    going_on.with_config([*argv, "--modules=no_such_module"])
    with pytest.raises(ConfigError, match="no_such_module"):
        saved_config.get_config(str(tmp_path))
    config["algorithm"]["name"], config["cosmic"] = "ditto", 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="has the field cosmic, which this version"):
        saved_config.get_config(str(tmp_path))


def test_the_directory_says_how_it_goes_on(tmp_path):
    saved(tmp_path)
    going_on.write_command(tmp_path, [f"--workdir={tmp_path}"])
    assert files.read_command(tmp_path) is None  # it was run from Python
    arguments = ["--config=a.py", "--devices=3", "--config.rounds=4", f"--workdir={tmp_path}"]
    going_on.write_command(tmp_path, arguments)
    text = (tmp_path / "command.txt").read_text()
    start = "python -m experiments.run --config=a.py --devices=3"
    assert text == (
        f"{start} --config.rounds=4\n# To go on with this run, or with more rounds of it: python "
        f"-m experiments.run --workdir={tmp_path}\n"
    )
    assert going_on.with_config(["run", f"--workdir={tmp_path}"])[2] == "--devices=3"
    assert "--devices=3" not in going_on.with_config(
        ["run", f"--workdir={tmp_path}", "--devices=2"]
    )
    going_on.write_command(tmp_path, [f"--workdir={tmp_path}", "--config.rounds=9"])
    assert files.read_command(tmp_path) == f"{start} --config.rounds=9"
    (tmp_path / "command.txt").write_text("'")
    assert len(going_on.with_config(["run", f"--workdir={tmp_path}"])) == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_a_run_is_prepared_lets_go_of_the_lock(signum, tmp_path, capsys):
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as ended:
        with tells_how_to_go_on(tmp_path), locked(tmp_path):
            assert (tmp_path / "lock").read_text()
            signal.raise_signal(signum)
    assert ended.value.code == 128 + signum
    assert (tmp_path / "lock").read_text() == "" and signal.getsignal(signum) is before
    said = capsys.readouterr().err
    assert said.startswith(f"interrupted by {signal.Signals(signum).name}; the same command")
    told = []
    with locked(tmp_path, told.append):
        assert told == []


def test_a_signal_whose_error_was_lost_stops_the_run_after_all(tmp_path):
    with signals.interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass  # as JAX's callbacks do
        with signals.asked_to_stop() as asked:
            assert asked() == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):  # a second one: first noted, then raised
                signal.raise_signal(signal.SIGTERM)
                assert asked() == signal.SIGTERM
                signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def no_names(monkeypatch):
    """Let what is named here be forgotten."""
    monkeypatch.setattr(factories, "_OUTSIDE", {section: {} for section in factories.FACTORIES})
