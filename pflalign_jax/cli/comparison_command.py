"""What commands that train many runs in one directory have in common."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console

from pflalign_jax.cli.command import tells_how_to_go_on
from pflalign_jax.cli.console import ComparisonProgress, comparison_progress
from pflalign_jax.cli.devices import DEVICES, cache_programs, check_devices, use_devices
from pflalign_jax.cli.flags import CACHE, WORKDIR, command_of, default_workdir
from pflalign_jax.runs import files
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.signals import asked_to_stop


class Comparison(NamedTuple):
    """A comparison that has been begun, or goes on.

    Attributes:
      root: its directory.
      command: that makes it again.
      progress: shown while it lasts.
      stop: the signal to stop for, 0 as long as there is none.
    """

    root: pathlib.Path
    command: str
    progress: ComparisonProgress
    stop: Callable[[], int]


@contextlib.contextmanager
def comparison_of(
    name: str, console: Console, arguments: list[str] | None = None, shared: bool = False
) -> Iterator[Comparison]:
    """Yield the comparison in ``--workdir``, which nobody else may work in meanwhile.

    Args:
      name: of the command in ``experiments``.
      console: where progress is shown.
      arguments: that make it again, where these are not those of this process.
      shared: whether others that share it, too, may work in it; they lock what they work on.

    Raises:
      UserError: for devices that are not there, or a directory that cannot be used.
    """
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    check_devices()
    root = pathlib.Path(WORKDIR.value or default_workdir(name))
    command = command_of(name, sys.argv[1:] if arguments is None else arguments)
    files.create_comparison(root)
    with (
        tells_how_to_go_on(root),
        comparison_progress(console) as progress,
        locked(root, progress.say, shared),
        asked_to_stop() as stop,
    ):
        files.write_command(root, command)
        yield Comparison(root, command, progress, stop)
