"""The files of a Flower app: a config, and modules of two lines that make the apps of it."""

import os
import pathlib
import re

from ml_collections import ConfigDict

from pflalign_jax.deploy.limits import check_deployable
from pflalign_jax.runs import files
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.read_types import ReadError, object_of, with_tuples

PACKAGE = "federation"
"""The app's Python package, a folder in it."""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=70"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.0.0"
description = "{algorithm} on {dataset}, by pFLAlign-JAX"
license = {{ file = "LICENSE" }}
# Install the same versions on every machine; nothing is installed when a run starts.
dependencies = ["flwr>=1.42", "pflalign-jax"]

[tool.setuptools]
packages = ["{package}"]

[tool.flwr.app]
publisher = "{name}"
fab-format-version = 1
flwr-version-target = "{target}"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
# Each can be given to `flwr run` as --run-config "num-clients=5".
workdir = "{workdir}"  # on the server: the run's directory; an unfinished run in it goes on
num-clients = {num_clients}  # nodes that the run has
deadline = 600  # most seconds for a node's answer
wait = 600  # most seconds to wait for nodes: for all before the first round, for one later
"""

MODULE = '''\
"""The app of {whose}: {what}."""

import pathlib

from pflalign_jax.deploy.app_files import read_config
from pflalign_jax.deploy.flower import {function}

app = {function}(read_config(pathlib.Path(__file__).with_name("config.json")))
'''

LICENSE = "Choose a licence for this app; Flower asks for this file.\n"


def write_app(
    folder: str | os.PathLike, config: ConfigDict, workdir: str | os.PathLike, num_clients: int
) -> pathlib.Path:
    """Write a Flower app that ``flwr run`` takes; return its folder.

    Args:
      folder: new or empty.
      config: of the run.
      workdir: of the run, an absolute path on the server's machine.
      num_clients: how many nodes the run has.

    Raises:
      ConfigError: for a config that needs a simulation.
      WorkdirError: if the folder holds something, or cannot be written.
    """
    config = resolve(config)
    check_deployable(config)
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise files.WorkdirError(f"{folder} is not empty; name a new folder for the app")
    files.make_writable(folder / PACKAGE)
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-") or "app"
    about = {
        "name": name,
        "package": PACKAGE,
        "algorithm": config.algorithm.name,
        "dataset": config.dataset.name,
        "workdir": os.fspath(workdir).replace("\\", "\\\\").replace('"', '\\"'),
        "num_clients": num_clients,
        "target": "1.42.0",
    }
    files.write_text(folder / "pyproject.toml", PYPROJECT.format(**about))
    files.write_text(folder / "LICENSE", LICENSE)
    package = folder / PACKAGE
    files.write_text(package / "__init__.py", "")
    files.write_json(package / files.CONFIG, files.infinities_as_text(config.to_dict()))
    for module, whose, what, function in (
        ("server_app", "the server", "it asks nodes and writes the run's directory", "server_app"),
        ("client_app", "a node", "it trains on the node's own data", "client_app"),
    ):
        text = MODULE.format(whose=whose, what=what, function=function)
        files.write_text(package / f"{module}.py", text)
    return folder


def read_config(path: str | os.PathLike) -> ConfigDict:
    """Return the config of an app.

    Raises:
      RunError: naming the file, if it cannot be read.
    """
    try:
        found = object_of(pathlib.Path(path).read_bytes())
    except (OSError, ReadError) as error:
        raise files.RunError(f"{path} cannot be read ({error}); write the app again") from error
    return resolve(ConfigDict(with_tuples(files.infinities_of_text(found))))
