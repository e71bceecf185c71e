"""How a run ends early: when asked to, with an error; one run at a time has a workdir."""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from experiments.workdir import WorkdirError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A run that stopped when it was asked to.

    Attributes:
      signum: the signal.
      done: rounds done.
    """

    def __init__(self, signum: int, done: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after round {done}")
        self.signum, self.done = signum, done


def fail(message: str, status: int = 2) -> NoReturn:
    """Print an error and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal to stop for, 0 as long as there is none.

    A second signal does at once what it always did.
    """
    seen = [0]
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def put_back():
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def remember(signum, frame):
        seen[0] = signum
        put_back()

    for signum in SIGNALS:
        signal.signal(signum, remember)
    try:
        yield lambda: seen[0]
    finally:
        put_back()


@contextlib.contextmanager
def locked(path: pathlib.Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a directory's lock, which the system lets go when the process ends, however it ends.

    Args:
      path: the directory; the lock is its file ``lock``, which says who has it.
      say: is told of a run that left its name but is gone, and of a file system without locks.

    Raises:
      WorkdirError: naming who holds it.
    """
    with (path / "lock").open("a+") as file:
        file.seek(0)
        holder = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(
                f"workdir {path} is in use by {holder or 'another run'}; wait for it, stop it, or "
                "choose another --workdir"
            ) from error
        except OSError as error:
            say(f"{path} cannot be locked ({error.strerror}); see to it that no other run uses it")
        else:
            if holder:
                say(f"the lock of {path} was left by {holder}, which is gone")
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        yield
        file.truncate(0)
