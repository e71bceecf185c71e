"""What is shipped: a wheel with the library and nothing else; typed; one version."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import pflalign_jax

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel of all that a clone holds, without network."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    anywhere = shutil.ignore_patterns(".git", *(name for name in ignored if name[0] != "/"))
    at_root = {name[1:] for name in ignored if name[0] == "/"}

    def ignore(folder, names):
        return anywhere(folder, names) | (at_root if folder == str(ROOT) else set())

    shutil.copytree(ROOT, source, ignore=ignore, symlinks=True, dirs_exist_ok=True)
    command = "pip wheel --quiet --no-deps --no-build-isolation --disable-pip-version-check"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--wheel-dir", out, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return file


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    found = set(zipfile.ZipFile(wheel).namelist())
    info = f"pflalign_jax-{pflalign_jax.__version__}.dist-info"
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "pflalign_jax").rglob("*.py")}
    about = {name for name in found if name.startswith(f"{info}/")}
    assert found - about == code | {"pflalign_jax/py.typed"}
    names = {name.removeprefix(f"{info}/") for name in about}
    assert names == {"METADATA", "WHEEL", "top_level.txt", "RECORD", "licenses/LICENSE"}


def test_the_wheel_is_enough(wheel, tmp_path):
    """A round by hand; then a run from a config, stopped, gone on with, and loaded."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import sys
sys.modules["experiments"] = None  # a clone's root may be on the path
import jax, pflalign_jax as pfl
data = pfl.datasets.digits(num_clients=3, fraction=0.1)
model = pfl.models.logistic(10)
federation = pfl.federate(pfl.algorithms.pflalign(model), model, data)
state, result = federation.run_round(federation.init(jax.random.key(0)))
print(pfl.__file__, result.cohort.tolist())

config = pfl.runs.default_config()
config.rounds, config.model.name, config.algorithm.learning_rate = 3, "logistic", 1.0
config.dataset.num_clients, config.dataset.fraction = 3, 0.1
try:
    pfl.runs.run(config, "run", stop=lambda: 15)
except pfl.runs.StoppedError as stopped:
    print(stopped)
outcome = pfl.runs.run(config, "run")
run = pfl.runs.load("run")
print(outcome.rows == run.metrics, run.predict(data.x[:5], client="0").shape)
"""
    jax_settings = {k: v for k, v in os.environ.items() if k.startswith(("JAX", "XLA"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,  # before what is installed
        capture_output=True,
        text=True,
        env={**jax_settings, "PATH": "", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.splitlines() == [
        f"{tmp_path}/pflalign_jax/__init__.py [0, 1, 2]",
        "stopped by SIGTERM after round 1",
        "going on in run after round 1 of 3",
        "True (5, 10)",
    ], done.stderr


def test_one_version():
    version = pflalign_jax.__version__
    assert re.search(r"^## (\S+?)[, \n]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def public_functions(body, prefix=""):
    """Yield the functions and methods of a module that have no underscore, with their names."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")


def test_public_functions_are_typed():
    bare = []
    for path in sorted([*ROOT.glob("pflalign_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]):
        for name, node in public_functions(ast.parse(path.read_text()).body):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            untyped = [
                a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")
            ]
            if untyped or node.returns is None:
                bare.append(f"{path.relative_to(ROOT)}: {name}({', '.join(untyped)})")
    assert not bare, "\n".join(bare)


def test_errors_are_for_the_user():
    """Commands end with the message of these, and with a traceback of any other."""
    others = []
    for path in sorted([*ROOT.glob("pflalign_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                bases = {base.id for base in node.bases}
                if not bases & {"UserError", "WorkdirError"}:  # RunError is a WorkdirError
                    others.append(node.name)
    assert others == ["UserError", "StoppedError"]  # the latter ends a run as it was asked to
