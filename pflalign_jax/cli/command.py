"""How a command starts and how it ends."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging

from pflalign_jax.cli.output import output_may_fail
from pflalign_jax.errors import UserError
from pflalign_jax.runs.files import how_to_go_on
from pflalign_jax.runs.signals import StoppedError, interrupted_by, interruptible

MISTAKE = 2
"""Exit status of a command that the user has to give differently."""


class FlagError(UserError):
    """Flags or arguments that are not possible; the message names them and what is."""


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags and return the program's name and what is no flag.

    Raises:
      FlagError: for unknown flags and impossible values.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise FlagError(f"{error}\nPass --help for all flags.") from error


def refuse_arguments(arguments: list[str], advice: str = "") -> None:
    """Refuse what is no flag, for commands that take flags only.

    Args:
      arguments: what is no flag, without the program's name.
      advice: what to do instead.

    Raises:
      FlagError: naming the first such argument.
    """
    if arguments:
        raise FlagError(f"unexpected argument {arguments[0]!r}{advice}")


def run_command(
    main: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]] = parse_flags
) -> None:
    """Run a command: parse its flags and call ``main`` with the arguments that are none.

    What the user can mend (`UserError`) ends it with one line and status 2 instead of a traceback.

    Args:
      main: the command.
      parse: its way to parse flags, made from `parse_flags`.
    """

    def start(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # not JAX's search for accelerators
        # A terminal may lack the characters of a name: \xe9 is better than no run.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        main(argv[1:])

    sys.unraisablehook = _tell_unraisable
    with output_may_fail():
        try:
            app.run(start, flags_parser=parse)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(MISTAKE)


def _tell_unraisable(told: "sys.UnraisableHookArgs") -> None:
    """Print what was raised where nobody can catch it, but for what follows a failed checkpoint.

    Then tensorstore finds the event loop of each array that is not written yet closed.
    """
    if str(told.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(told)


@contextlib.contextmanager
def tells_how_to_go_on(workdir: pathlib.Path, tell: bool = True) -> Iterator[None]:
    """End a command that was stopped or interrupted as shells expect, saying how it goes on.

    Args:
      workdir: of the run or the comparison.
      tell: whether this process says it; of several only one does.
    """
    try:
        with interruptible():
            yield
    except StoppedError as stopped:
        if tell:
            print(f"{stopped}; {how_to_go_on(workdir)}", file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt as error:
        signum = interrupted_by(error)
        print(f"interrupted by {signum.name}; {how_to_go_on(workdir)}", file=sys.stderr)
        sys.exit(128 + signum)
