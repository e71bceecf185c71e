"""The config of a run that was, read as a config file: ``--config=saved_config.py:DIRECTORY``.

So a run goes on with the flags of a new one: ``--config.rounds=200``, ``--explain``.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config, files
from pflalign_jax.runs.config import factory
from pflalign_jax.runs.factories import FACTORIES
from pflalign_jax.runs.read_types import with_tuples


def get_config(workdir: str) -> ConfigDict:
    """Return the config in a run's directory.

    Raises:
      RunError: naming a field that this version does not know.
    """
    found = files.read_config(pathlib.Path(workdir))
    # Of functions outside the package the arguments are fields once they have been named.
    for section in FACTORIES.keys() & found.keys():
        factory(section, found[section]["name"])
    config = default_config(found["algorithm"]["name"], found["model"]["name"])
    _fill(config, found, workdir)
    return config


def _fill(config: ConfigDict, found: Mapping[str, Any], workdir: str, section: str = "") -> None:
    """Set the fields of a config to what was found."""
    for key, value in found.items():
        if key not in config:
            raise files.RunError(
                f"{workdir}/{files.CONFIG} has the field {section}{key}, which this version of "
                "pFLAlign-JAX does not know; go on with the version that wrote it"
            )
        if isinstance(value, Mapping):
            _fill(config[key], value, workdir, f"{section}{key}.")
        else:
            config[key] = with_tuples(value)
