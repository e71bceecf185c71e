"""Algorithms and models outside the package, named as ``module:function`` in a config."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import pflalign_jax as pfl
from experiments.compare import comparison, leaderboard
from pflalign_jax.runs import factories, files
from pflalign_jax.runs.build import build
from pflalign_jax.runs.config import ConfigError, default_config, resolve
from pflalign_jax.runs.explain import explain
from pflalign_jax.runs.factories import factory, is_number, parameters, table_key
from pflalign_jax.runs.signals import StoppedError

ROOT = pathlib.Path(__file__).resolve().parents[2]

METHODS = '''
import pflalign_jax as pfl


def slower(model, learning_rate=0.1, *, k: int = 2, damping: float = 0.5, note=None,
           loss=None, local_epochs=1, batch_size=10):
    """FedAvg with a step size divided by k.

    Args:
      learning_rate: as in `fedavg`.
      k: what step sizes are divided by.
    """
    return pfl.algorithms.fedavg(
        model, learning_rate / k, loss=loss, local_epochs=local_epochs, batch_size=batch_size
    )


def narrow(num_classes: int, width: int = 5):
    return pfl.models.mlp(num_classes, (width,))


def nothing(model, learning_rate=0.1):
    return {}


seven = 7
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder, the current one, with the modules ``own_methods`` and ``own_package.methods``."""
    (tmp_path / "own_methods.py").write_text(METHODS)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "methods.py").write_text(METHODS)
    (tmp_path / "own_broken.py").write_text("import numpy\n\n1 / 0\n")
    (tmp_path / "own_typo.py").write_text("def f(:\n")
    (tmp_path / "own_import.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(factories, "_OUTSIDE", {section: {} for section in factories.FACTORIES})
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def small(config):
    config.rounds = 1
    config.dataset.num_clients, config.dataset.fraction = 4, 0.2
    config.model.name = "logistic"
    config.compare.grid, config.compare.extensions = (0.1,), 0
    return config


@pytest.mark.parametrize("name", ["own_methods:slower", "own_package.methods:slower"])
def test_its_arguments_are_fields(outside, name):
    config = small(default_config(name))
    assert config.algorithm.name == name and name in config.compare.algorithms
    config.algorithm.k = 3
    config.learning_rates[table_key(name)] = 0.3
    resolved = resolve(config).algorithm
    assert (resolved.k, resolved.damping, resolved.learning_rate) == (3, 0.5, 0.3)
    config.algorithm.k = "three"
    with pytest.raises(ConfigError, match=r"config\.algorithm\.k='three'.*int"):
        resolve(config)
    with pytest.raises(AttributeError):
        default_config().algorithm.j = 1
    assert list(parameters("algorithm", name)) == ["learning_rate", "k", "damping", "note"]
    assert is_number(name, "damping") and not is_number(name, "k")


def test_it_is_explained_also_without_a_text(outside):
    text = explain(default_config("own_methods:slower"))
    assert "algorithm.k = 2\n    what step sizes are divided by\n" in text
    assert "algorithm.damping = 0.5\n    of type float, default 0.5; " in text
    assert "algorithm.note = None\n    default None; " in text
    assert "own_methods:slower" in text


def test_it_runs_like_one_of_the_package(outside):
    config = small(default_config("own_methods:slower"))
    config.algorithm.learning_rate, config.algorithm.k = 0.4, 4
    own = build(config)
    config = small(default_config("fedavg"))
    config.algorithm.learning_rate = 0.1
    plain = build(config)
    losses = []
    for experiment in (own, plain):
        federation = experiment.federation
        _, result = federation.run_round(federation.init(jax.random.key(0)), score=True)
        losses.append(result.adapted["test/personal/adapted"].loss)
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize("given", ["inf", -math.inf])
def test_infinity_is_written_and_read(outside, given):
    """Json has no infinity: a run with one goes on and is loaded all the same."""
    config = small(default_config("own_methods:slower"))
    config.rounds, config.algorithm.damping, config.algorithm.learning_rate = 2, given, 0.1
    with pytest.raises(StoppedError):
        pfl.runs.run(config, outside / "run", say=lambda text: None, stop=lambda: 15)

    def no_constants(name):
        raise AssertionError(name)

    text = (outside / "run" / "config.json").read_text()
    written = json.loads(text, parse_constant=no_constants)
    assert written["algorithm"]["damping"] == files.INFINITIES[float(given)]
    said = []
    pfl.runs.run(config, outside / "run", say=said.append)
    assert any("goes on" in text or "after round 1" in text for text in said), said
    assert pfl.runs.load(outside / "run").config["algorithm"]["damping"] == float(given)


def test_models_can_be_named_likewise(outside):
    config = default_config(model="own_methods:narrow")
    config.model.width = 3
    assert resolve(config).model.width == 3
    assert build(small_data(config)).model.head == ("Dense_1",)


def small_data(config):
    config.dataset.num_clients, config.dataset.fraction = 4, 0.2
    return config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no module 'no_such_module'; run the command in the folder that"),
        ("own_package.none:f", "no module 'own_package.none'; run"),
        ("own_methods:slow", r"own_methods.py has no function 'slow'; did you mean 'slower'"),
        ("own_methods:seven", r"own_methods.py has no function 'seven'; "),
        ("own_broken:f", "'own_broken' cannot be imported: ZeroDivisionError in .*, line 3"),
        ("own_typo:f", r"'own_typo' cannot be imported: SyntaxError: .*\(own_typo.py, line 1\)"),
        ("own_import:f", "cannot be imported: ModuleNotFoundError in .*own_import.py, line 1"),
        ("own_methods:", "is not allowed; name a function as my_module:my_function"),
        ("./own_methods.py:slower", "is not allowed; name a function as my_module"),
        ("own_methods", r"is unknown;.* choose from .*or name your own as my_module:my_function"),
    ],
)
def test_what_is_missing_is_named(outside, name, message):
    with pytest.raises(ConfigError, match=message):
        factory("algorithm", name)
    with pytest.raises(ConfigError, match=r"config\.algorithm\.name="):
        default_config(name)


def test_other_results_than_algorithms_are_refused(outside):
    with pytest.raises(ConfigError, match=r"'own_methods:nothing' returned dict; it must return"):
        build(small(default_config("own_methods:nothing")))


def test_keys_and_names_of_folders():
    assert table_key("pflalign") == "pflalign" and table_key("full-90") == "full-90"
    assert table_key("a.b:c/d") == "a_b_c_d"


def test_it_takes_part_in_a_comparison(outside):
    name, root = "own_package.methods:slower", outside / "compared"
    config = small(default_config(name))
    config.compare.grids.own_package_methods_slower = (0.2,)
    with config.unlocked():
        config.compare.tuned.own_package_methods_slower = ("damping", (0.1, 0.5))
    entries = comparison.compare(config, [name, "fedavg"], 1, root)
    leaderboard.write(root, entries, "command", config)
    assert [(e.method, e.learning_rate) for e in entries] == [(name, 0.2), ("fedavg", 0.1)]
    folders = {path.name for path in (root / "trials").iterdir()}
    assert "own_package_methods_slower-0.2-damping-0.1-0" in folders
    assert {"own_package_methods_slower-0.2-0", "fedavg-0.1-0"} <= folders
    assert name in (root / "leaderboard.md").read_text()
    assert comparison.compare(config, [name, "fedavg"], 1, root) == entries


def command(module, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow  # in this process: above
def test_the_command_takes_it_and_what_it_left_can_be_loaded(outside):
    done = command(
        "experiments.run",
        f"--config={ROOT}/experiments/digits.py",
        "--config.algorithm.name=own_methods:slower",
        "--config.algorithm.k=3",
        "--config.rounds=1",
        "--config.dataset.fraction=0.3",
        "--config.model.hidden=(8,)",
        cwd=outside,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (outside / "runs").iterdir()
    assert path.name.startswith("digits-own_methods_slower-2")
    loaded = json.loads((path / "config.json").read_text())["algorithm"]
    assert (loaded["name"], loaded["k"], loaded["damping"]) == ("own_methods:slower", 3, 0.5)
    run = pfl.load_run(path, modules=["own_methods"])
    assert run.predict(np.zeros((2, 8, 8, 1), np.uint8), client="0").shape == (2, 10)
    refused = command(
        "experiments.run",
        f"--config={ROOT}/experiments/digits.py",
        "--config.algorithm.name=own_methods:slowest",
        cwd=outside,
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error: config.algorithm.name=")
    assert "has no function 'slowest'; did you mean 'slower'" in refused.stderr
    assert "Traceback" not in refused.stderr
