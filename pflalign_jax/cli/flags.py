"""The flags that commands with a ``--config`` share, and the errors of what is given to them."""

import argparse
import copy
import os
import pathlib
import shlex
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pflalign_jax.cli.command import FlagError, parse_flags, refuse_arguments
from pflalign_jax.errors import UserError
from pflalign_jax.runs.explain import explain
from pflalign_jax.runs.factories import FACTORIES, factory, table_key

OWN_FILES = ("npz", "tables", "image_folder", "leaf")
"""Datasets that are whatever the user's files hold."""

CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment, a Python file.")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run's files go; default: runs/EXPERIMENT-ALGORITHM-DATE-TIME. A run in it goes on.",
)
CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/pflalign_jax",
    "Where compiled programs are kept for the next run; '' keeps none. JAX_COMPILATION_CACHE_DIR "
    "wins.",
)
EXPLAIN = flags.DEFINE_bool(
    "explain",
    False,
    "Print every field of --config with its value, default and meaning; run nothing.",
)


def parse_config_flags(argv: list[str], comparison: bool = False) -> list[str]:
    """Parse the flags of a command that has a ``--config``, and read the config.

    With ``--explain`` the config is printed and the command ends.

    Args:
      argv: the command's name and arguments.
      comparison: whether ``--explain`` shows the fields of `experiments.compare`, too.

    Raises:
      FlagError: for a missing or bad config, an unknown field, or what is no flag.
    """
    try:
        _find_outside_functions(argv)
        _check_path(option(argv, "config")[0])
        rest = parse_flags(argv)
        _check_config_file()
        if comparison:
            _given_grid_wins(argv)
        if EXPLAIN.value:
            print(explain(CONFIG.value, comparison))
            sys.exit()
    except Exception as error:  # a config file may raise anything
        said = _of_config_file(error, option(argv, "config")[0])
        if said is not None:
            raise FlagError(said) from error
        if isinstance(error, UserError):
            raise
        if isinstance(error, AttributeError | KeyError):
            raise FlagError(_unknown_field(error)) from error
        if isinstance(error, OSError):
            raise FlagError(f"--config cannot be read: {error}") from error
        raise
    refuse_arguments(rest[1:], "; fields are set with --config.FIELD=VALUE")
    return rest


def _given_grid_wins(argv: list[str]) -> None:
    """Let a ``--config.compare.grid`` go for methods that have another one in the config's file.

    What is typed is meant, and what a file or a default says of single methods was written before.
    A ``--config.compare.grids.METHOD`` that is typed, too, is of that method.
    """
    grids = CONFIG.value.compare.grids
    if option(argv, "config.compare.grid")[0] is None:
        return
    for method in grids:
        if option(argv, f"config.compare.grids.{method}")[0] is None:
            grids[method] = None


def _find_outside_functions(argv: list[str]) -> None:
    """Import functions outside the package that the command names as ``module:function``.

    This comes before the config is read, so that it has their arguments as fields.
    """
    named = [(section, option(argv, f"config.{section}.name")[0]) for section in FACTORIES]
    named += [("algorithm", name) for name in (option(argv, "algorithms")[0] or "").split(",")]
    for section, name in named:
        if name and ":" in name:
            factory(section, name)


def _check_path(given: str | None) -> None:
    """Refuse a ``--config`` that names no Python file."""
    if given is None:
        return  # told once all flags are known
    file, example = pathlib.Path(given.split(":")[0]), "such as experiments/digits.py"
    if file.is_dir():
        raise FlagError(f"--config={given} is a folder; name the Python file in it, {example}")
    if not file.is_file():
        where = "" if file.is_absolute() else f" in {os.getcwd()}, where the command runs"
        raise FlagError(
            f"--config={given} does not exist{where}; name a Python file that defines "
            f"get_config(), {example}"
        )
    if file.suffix != ".py":
        raise FlagError(
            f"--config={given} is no Python file (.py); name one that defines get_config(), "
            f"{example}"
        )


def _check_config_file() -> None:
    """Refuse a ``--config`` that is missing, cannot be read or gives no config."""
    if CONFIG.value is None:
        raise FlagError("no experiment given; pass --config=experiments/digits.py")
    if not hasattr(CONFIG.value, "to_dict"):  # raises where no file could be read
        raise FlagError(
            f"get_config() of {config_file()} returned {type(CONFIG.value).__name__}, not a "
            "config; begin it with pflalign_jax.runs.default_config()"
        )
    CONFIG.value.to_dict()


def with_fields(config: ConfigDict, given: Mapping[str, str]) -> ConfigDict:
    """Return a copy of a config in which fields have other values, as of its flags.

    Args:
      config: unchanged.
      given: dotted name to the text of ``--config.NAME=TEXT``.

    Raises:
      FlagError: for an unknown field, or a text that has none of the field's values.
    """
    words = ["command", *(f"--config.{name}={text}" for name, text in given.items())]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", copy.deepcopy(config), flag_values=values, sys_argv=words
        )
        values(words)
    except (AttributeError, KeyError) as error:
        raise FlagError(_unknown_field(error)) from error
    except (flags.Error, ValueError) as error:
        raise FlagError(str(error)) from error
    changed: ConfigDict = values["config"].value
    return changed


def config_file() -> str:
    """Return the file that ``--config`` names."""
    return str(getattr(flags.FLAGS["config"], "config_filename"))  # noqa: B009


def default_workdir(name: str) -> str:
    """Return ``runs/EXPERIMENT-NAME-DATE-TIME``; for a user's own files DATA is the experiment."""
    when = time.strftime("%Y%m%d-%H%M%S")
    experiment, dataset = pathlib.Path(config_file()).stem, CONFIG.value.dataset
    # One experiment serves all files of users: its name would not tell their runs apart.
    if dataset.name in OWN_FILES and dataset.path:
        experiment = pathlib.Path(os.path.abspath(dataset.path)).name.split(".")[0] or experiment
    return f"runs/{experiment}-{table_key(name)}-{when}"


def option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Return the value of an option, None if it is not there, and a command's other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # As absl reads flags: one or two dashes, a value after = or as the next word.
    parser.add_argument(f"--{name}", f"-{name}", dest="value")
    found, rest = parser.parse_known_args(arguments)
    return found.value, rest


def command_of(module: str, arguments: list[str]) -> str:
    """Return the command that does an experiment again, in a directory of its own."""
    _, rest = option(arguments, "workdir")
    return shlex.join(["python", "-m", f"experiments.{module}", *rest])


def _of_config_file(error: BaseException | None, given: str | None) -> str | None:
    """Return what to say of an error that a config file is to blame for; None for another one."""
    file, _, setting = (given or "").partition(":")
    or_setting = f", or {setting!r} in --config={given}" if setting else ""
    mend = f"\nThe config could not be made; mend this line of its file{or_setting}."
    seen: set[Any] = set()
    while error is not None and file and os.path.exists(file) and error not in seen:
        seen.add(error)
        if isinstance(error, AttributeError) and str(error).endswith("attribute 'get_config'"):
            return f"{file} has no function get_config(), which returns the config; add it"
        if isinstance(error, SyntaxError) and error.filename == os.path.abspath(file):
            return f"{file}, line {error.lineno}: {type(error).__name__}: {error.msg}{mend}"
        # The innermost line of the file: where its author has to look.
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if os.path.abspath(frame.filename) == os.path.abspath(file):
                text = str(error).split("\n")[0]
                if isinstance(error, AttributeError | KeyError):
                    text = _unknown_field(error)
                return f"{file}, line {frame.lineno}: {type(error).__name__}: {text}{mend}"
        # ml_collections wraps what a file raises in errors of its own.
        error = error.__cause__ or error.__context__
    return None


def _unknown_field(error: Exception) -> str:
    """Shorten ml_collections' message, which may have the whole config in it."""
    text = str(error.args[0]).replace("\\n", "\n").strip("\"'").replace("\\'", "'")
    missing, *hint = text.split("\n")
    # The message of a KeyError has the field in quotes, then the config, then the nearest names.
    if missing.startswith('Key "'):
        missing, hint = missing.split('"')[1], [text[text.rfind("Did you mean") :]]
    said = " ".join(hint)
    nearest = said if "Did you mean" in said else ""
    return f"config has no field {missing.strip(chr(39))!r}. {nearest}"
