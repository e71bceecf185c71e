"""The flags that commands share, and the errors of what is given to them."""

import argparse
import os
import pathlib
import shlex
import sys
import time
import traceback
from typing import Any

from absl import flags
from ml_collections import config_flags

from pflalign_jax.cli.devices import DeviceError
from pflalign_jax.cli.errors import fail
from pflalign_jax.datasets import DatasetError
from pflalign_jax.federated import StoreError
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs.checkpoints import CheckpointError
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.hardware import MemoryExhaustedError
from pflalign_jax.runs.round_checks import DivergedError

CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment, a Python file.")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run's files go; default: runs/EXPERIMENT-ALGORITHM-DATE-TIME. An unfinished run in "
    "it goes on.",
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

USER_ERRORS = (
    DeviceError,
    vocabulary.ConfigError,
    DatasetError,
    StoreError,
    WorkdirError,
    DivergedError,
    CheckpointError,
    MemoryExhaustedError,
)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; a bad config or field ends with one clear line instead of a traceback."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            fail("no experiment given; pass --config=experiments/digits.py")
        if not hasattr(CONFIG.value, "to_dict"):  # raises where no file could be read
            fail(
                f"get_config() of {config_file()} returned {type(CONFIG.value).__name__}, not a "
                "config; begin it with pflalign_jax.runs.default_config()"
            )
        CONFIG.value.to_dict()
        if EXPLAIN.value:
            print(vocabulary.describe(CONFIG.value))
            sys.exit()
    except vocabulary.ConfigError as error:
        fail(str(error))
    except Exception as error:  # a config file may raise anything
        said = _of_config_file(error, option(argv, "config")[0])
        if said is not None:
            fail(said)
        if isinstance(error, flags.Error):
            fail(f"{error}\nPass --help for all fields and flags.")
        if isinstance(error, AttributeError | KeyError):
            fail(_unknown_field(error))
        if isinstance(error, OSError):
            fail(f"--config cannot be read: {error}")
        raise
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; fields are set with --config.FIELD=VALUE")
    return rest


def config_file() -> str:
    """Return the file that ``--config`` names."""
    return str(getattr(flags.FLAGS["config"], "config_filename"))  # noqa: B009


def default_workdir(name: str) -> str:
    """Return ``runs/EXPERIMENT-NAME-DATE-TIME``."""
    when = time.strftime("%Y%m%d-%H%M%S")
    return f"runs/{pathlib.Path(config_file()).stem}-{name}-{when}"


def option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Return the value of an option, None if it is not there, and a command's other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", f"-{name}", dest="value")
    found, rest = parser.parse_known_args(arguments)
    return found.value, rest


def command_of(module: str, arguments: list[str]) -> str:
    """Return the command that does an experiment again, in a directory of its own."""
    _, rest = option(arguments, "workdir")
    return shlex.join(["python", "-m", f"experiments.{module}", *rest])


def _of_config_file(error: BaseException | None, given: str | None) -> str | None:
    """Return what to say of an error that a config file is to blame for; None for another one."""
    file = (given or "").split(":")[0]
    seen: set[Any] = set()
    while error is not None and file and os.path.exists(file) and error not in seen:
        seen.add(error)
        if isinstance(error, AttributeError) and str(error).endswith("attribute 'get_config'"):
            return f"{file} has no function get_config(), which returns the config"
        if isinstance(error, SyntaxError) and error.filename == os.path.abspath(file):
            return f"{file}, line {error.lineno}: {type(error).__name__}: {error.msg}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if os.path.abspath(frame.filename) == os.path.abspath(file):
                text = str(error).split("\n")[0]
                if isinstance(error, AttributeError | KeyError):
                    text = _unknown_field(error)
                return f"{file}, line {frame.lineno}: {type(error).__name__}: {text}"
        error = error.__cause__ or error.__context__
    return None


def _unknown_field(error):
    """Shorten ml_collections' message, which may have the whole config in it."""
    text = str(error.args[0]).replace("\\n", "\n").strip("\"'").replace("\\'", "'")
    missing, *hint = text.split("\n")
    if missing.startswith('Key "'):
        missing, hint = missing.split('"')[1], [text[text.rfind("Did you mean") :]]
    hint = " ".join(hint) if "Did you mean" in " ".join(hint) else ""
    return f"config has no field {missing.strip(chr(39))!r}. {hint}"
