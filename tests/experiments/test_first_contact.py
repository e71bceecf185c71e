"""What a newcomer asks for and gets wrong: lists, explanations, config files, devices."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from experiments import digits
from experiments import list as lists
from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.devices import cache_programs
from pflalign_jax.runs.explain import explain
from pflalign_jax.runs.factories import FACTORIES

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIGS = {
    "def get_config(:\n    pass\n": "line 1: SyntaxError: invalid syntax",
    "import nosuchmodule\n": "line 1: ModuleNotFoundError: No module named 'nosuchmodule'",
    "x = 1\n": "has no function get_config()",
    "def get_config():\n    return 1 / 0\n": "line 2: ZeroDivisionError: division by zero\n"
    "The config could not be made; mend this line of its file.",
    "def get_config():\n    raise ValueError('no\\nno')\n": "line 2: ValueError: no",
    "def get_config():\n    return {}\n": "returned dict, not a config; begin it with",
    "from experiments import digits\ndef get_config():\n    config = digits.get_config()\n"
    "    config.roundz = 1\n    return config\n": "line 4: AttributeError: config has no field "
    '\'roundz\'. Did you mean "rounds" instead of "roundz"?',
}


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


DIGITS = "--config=experiments/digits.py"
FLAGS = {
    (DIGITS, "--config.algorithm.learning_rat=1"): 'Did you mean "learning_rate"',
    (DIGITS, "--config.round=1"): 'Did you mean "rounds"',
    ("--config=experiments/nothing.py",): "--config=experiments/nothing.py does not exist in",
    ("--config", "/nothing.py", "--config.rounds=3"): "--config=/nothing.py does not exist; name a",
    ("--config=experiments",): "--config=experiments is a folder; name the Python file in it",
    ("--config=pyproject.toml",): "--config=pyproject.toml is no Python file",
    ("--config=experiments/who_wins.py:x",): "file, or 'x' in --config=experiments/who_wins.py:x",
    (): "pass --config=experiments/digits.py",
    (DIGITS, "stray"): "unexpected argument 'stray'",
}


def test_configs_and_flags_that_are_none(tmp_path):
    """All after one import, each in a process of its own, with a line of errors for each."""
    given = []
    for number, (text, message) in enumerate(CONFIGS.items()):
        file = tmp_path / f"c{number}.py"
        file.write_text(text)
        given.append(([f"--config={file}"], str(file), message))
    code = """
import json, os, sys, warnings
from pflalign_jax.cli.command import run_command
from pflalign_jax.cli.flags import parse_config_flags
warnings.simplefilter("ignore")  # of forks
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        sys.argv = ["run", *arguments]
        run_command(lambda arguments: None, parse_config_flags)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    print("end", file=sys.stderr, flush=True)
"""
    given += [(list(arguments), "", message) for arguments, message in FLAGS.items()]
    done = python("-c", code, json.dumps([g[0] for g in given]), JAX_PLATFORMS="cpu")
    assert done.stdout.split() == ["2"] * len(given), done.stderr
    said = done.stderr.split("end\n")[:-1]
    for text, (_, place, message) in zip(said, given, strict=True):
        assert text.startswith("error: ") and place in text and message in text, text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    "module", ["run", *(pytest.param(m, marks=pytest.mark.slow) for m in ("compare", "benchmark"))]
)
def test_an_accelerator_that_is_not_here(module, tmp_path):
    given = () if module == "benchmark" else ("--config=experiments/digits.py",)
    place = () if module == "benchmark" else (f"--workdir={tmp_path / 'run'}",)
    done = python("-m", f"experiments.{module}", *given, *place, JAX_PLATFORMS="tpu")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: JAX_PLATFORMS='tpu' asks for a device that is not here")
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written(capsys):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        cache_programs("/proc/nohome/.cache")
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    said = capsys.readouterr().err
    assert said.startswith("Compiled programs are not kept, /proc/nohome/.cache: No such file")


def test_explain_runs_nothing(tmp_path):
    done = python(
        "-m", "experiments.run", "--config=experiments/digits.py", "--explain",
        f"--workdir={tmp_path / 'run'}", "--config.algorithm.name=ditto", JAX_PLATFORMS="cpu",
    )  # fmt: skip
    assert done.returncode == 0 and not (tmp_path / "run").exists(), done.stderr
    assert done.stdout == explain(_ditto()) + "\n"


def _ditto():
    fields = digits.get_config()
    fields.algorithm.name = "ditto"
    return fields


def test_lists(capsys):
    lists.main([])
    text = capsys.readouterr().out
    for names in FACTORIES.values():
        for name in names:
            assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
    assert re.search(r"^  ditto +Ditto: FedAvg", text, re.MULTILINE)
    lists.main(["partitions"])
    text = capsys.readouterr().out
    assert "dirichlet" in text and "ditto" not in text and "`" not in text
    with pytest.raises(FlagError, match="'model' is unknown; did you mean 'models'"):
        lists.main(["model"])
    assert all(text for _, names in lists.KINDS.values() for text in names.values())
