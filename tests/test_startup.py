"""What `import pflalign_jax` does not import: packages that only some users need, and wait for."""

import ast
import subprocess
import sys

import pytest

SLOW = (
    "sklearn",
    "scipy.optimize",
    "matplotlib",
    "orbax",
    "tensorflow_datasets",
    "h5py",
    "pandas",
    "pyarrow",
    "flax",
    "ml_collections",
    "PIL",
    "pooch",
    "tokenizers",
    "safetensors",
    "gguf",
)


def loaded_after(code):
    """Return which slow packages a fresh interpreter has imported after some code."""
    code += f"\nimport sys\nprint([name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_waits_for_no_slow_package():
    assert loaded_after("import pflalign_jax") == "[]"


def test_networks_are_imported_when_asked_for():
    assert loaded_after("import pflalign_jax as pfl; pfl.models.cnn(10)") == "['flax']"


def test_pretrained_models_wait_for_the_packages_that_read_files():
    code = "from pflalign_jax.models import pretrained; pretrained.find_packaged"
    assert loaded_after(code) == "['flax']"


def test_runs_are_imported_when_asked_for():
    assert "ml_collections" in loaded_after("import pflalign_jax as pfl; pfl.load_run, pfl.runs")


@pytest.mark.parametrize("command", ["run --help", "list"])
def test_commands_that_compute_nothing_wait_for_nothing_else(command):
    module, *arguments = command.split()
    code = f"""
import contextlib, io, runpy, sys
sys.argv = ["command", *{arguments}]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module("experiments.{module}", run_name="__main__", alter_sys=True)
"""
    allowed = {"flax", "ml_collections"}  # to see what can be configured, and how
    assert set(ast.literal_eval(loaded_after(code))) <= allowed
