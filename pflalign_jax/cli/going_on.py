"""What the directory of a run adds to the command that goes on with it."""

import pathlib
import shlex
from collections.abc import Sequence

from pflalign_jax.cli import saved_config
from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.flags import command_of, option, parse_config_flags
from pflalign_jax.runs import files
from pflalign_jax.runs.outside_code import refuse_code

KEPT = ("devices", "log")
"""Flags that are taken from ``command.txt`` unless they are given: the first decides how sums are
rounded. No others, as anybody may have written that file."""


def parse_run_flags(argv: list[str]) -> list[str]:
    """Parse the flags of `experiments.run`; without ``--config`` that in ``--workdir`` is read.

    Raises:
      FlagError, UserError: as `parse_config_flags`; for a directory that holds no run.
    """
    return parse_config_flags(with_config(argv))


def with_config(argv: list[str]) -> list[str]:
    """Return a command's name and arguments, with the config that its ``--workdir`` holds.

    Args:
      argv: unchanged if it has a ``--config`` or no ``--workdir``.

    Raises:
      FlagError: if the directory holds a comparison, or nothing.
      RunError: if its config cannot be read, or names code that ``--modules`` does not.
    """
    given = option(argv, "workdir")[0]
    if given is None or option(argv, "config")[0] is not None:
        return argv
    workdir = pathlib.Path(given)
    if files.is_comparison(workdir):
        raise FlagError(
            f"--workdir={given} holds a comparison; it goes on with its own command and this "
            f"--workdir: {files.read_command(workdir) or 'experiments.compare'}"
        )
    if not files.has_config(workdir):
        raise FlagError(
            f"--workdir={given} holds no run to go on with; for a new one pass "
            "--config=experiments/digits.py"
        )
    modules = (option(argv, "modules")[0] or "").split(",")
    refuse_code(workdir, files.read_config(workdir), modules)
    _, before = _command(workdir)
    kept = [
        f"--{name}={value}"
        for name in KEPT
        if option(argv, name)[0] is None and (value := option(before, name)[0]) is not None
    ]
    # First, as its fields are flags from there on.
    return [argv[0], f"--config={saved_config.__file__}:{given}", *kept, *argv[1:]]


def write_command(workdir: pathlib.Path, arguments: Sequence[str]) -> None:
    """Write the command of a run to its directory, and the one that goes on with it.

    Args:
      workdir: the run's directory.
      arguments: as the user gave them. Without ``--config`` they change what is there.
    """
    command = command_of("run", list(arguments))
    if option(list(arguments), "config")[0] is None:
        start, before = _command(workdir)
        if not start:
            return  # it was run from Python
        _, more = option(list(arguments), "workdir")
        for name in [argument.lstrip("-").split("=")[0] for argument in more if "=" in argument]:
            before = option(before, name)[1]
        command = shlex.join([*start, *before, *more])
    go_on = shlex.join(["python", "-m", "experiments.run", f"--workdir={workdir}"])
    files.write_command(workdir, command, go_on)


def _command(workdir: pathlib.Path) -> tuple[list[str], list[str]]:
    """Return the words of the command of a run up to its module's, and its arguments."""
    try:
        words = shlex.split(files.read_command(workdir) or "")
    except ValueError:  # somebody's own text
        words = []
    return words[:3], words[3:]
