"""What a newcomer asks for and gets wrong: lists, explanations, config files, devices."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from experiments import config, digits, fashion_mnist, femnist
from experiments import list as lists
from experiments.devices import cache_programs

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIGS = {
    "def get_config(:\n    pass\n": "line 1: SyntaxError: invalid syntax",
    "import nosuchmodule\n": "line 1: ModuleNotFoundError: No module named 'nosuchmodule'",
    "x = 1\n": "has no function get_config()",
    "def get_config():\n    return 1 / 0\n": "line 2: ZeroDivisionError: division by zero",
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


def test_config_files_that_are_none(tmp_path):
    files = [tmp_path / f"c{number}.py" for number in range(len(CONFIGS))]
    for file, text in zip(files, CONFIGS, strict=True):
        file.write_text(text)
    code = """
import sys
from experiments.command_line import parse_flags
for file in sys.argv[1:]:
    try:
        parse_flags(["run", f"--config={file}"])
    except SystemExit as end:
        print(end.code)
"""
    done = python("-c", code, *files, JAX_PLATFORMS="cpu")
    assert done.stdout.split() == ["2"] * len(CONFIGS), done.stderr
    for line, file, wanted in zip(done.stderr.splitlines(), files, CONFIGS.values(), strict=True):
        assert line.startswith("error: ") and str(file) in line and wanted in line


@pytest.mark.parametrize("module", ["run", "compare", "benchmark"])
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


def test_every_field_is_explained():
    for experiment in (digits, fashion_mnist, femnist):
        for algorithm in config.FACTORIES["algorithm"]:
            fields = experiment.get_config()
            fields.algorithm.name = algorithm
            lines = config.describe(fields).splitlines()
            assert all(re.match(r"[a-z_.0-9]+ = ", line) for line in lines[::2])
            assert all(len(line.strip()) > 5 and "{" not in line for line in lines[1::2])
    fields.rounds = 7
    text = config.describe(fields)
    assert "rounds = 7  (default 30)\n    communication rounds" in text
    assert "batch_size = 10\n" in config.describe(digits.get_config())
    assert "model.hidden = (100,)  (default " in config.describe(digits.get_config())


def test_explain_runs_nothing(tmp_path):
    done = python(
        "-m", "experiments.run", "--config=experiments/digits.py", "--explain",
        f"--workdir={tmp_path / 'run'}", "--config.algorithm.name=ditto", JAX_PLATFORMS="cpu",
    )  # fmt: skip
    assert done.returncode == 0 and not (tmp_path / "run").exists(), done.stderr
    assert done.stdout == config.describe(_ditto()) + "\n"


def _ditto():
    fields = digits.get_config()
    fields.algorithm.name = "ditto"
    return fields


def test_lists(capsys):
    lists.main([])
    text = capsys.readouterr().out
    for names in config.FACTORIES.values():
        for name in names:
            assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
    assert "  ditto      Ditto: FedAvg" in text
    lists.main(["partitions"])
    text = capsys.readouterr().out
    assert "dirichlet" in text and "ditto" not in text and "`" not in text
    with pytest.raises(SystemExit):
        lists.main(["model"])
    assert "'model' is unknown; did you mean 'models'?" in capsys.readouterr().err
    assert all(text for _, names in lists.KINDS.values() for text in names.values())
