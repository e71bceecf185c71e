"""One run at a time has a directory; parts of one command may share theirs."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO

from pflalign_jax.runs.files import LOCK, WorkdirError


class InUseError(WorkdirError):
    """A directory that another process works in; the message names it."""


@contextlib.contextmanager
def locked(
    path: pathlib.Path, say: Callable[[str], None] = lambda text: None, shared: bool = False
) -> Iterator[None]:
    """Hold a directory's lock, which the system lets go when the process ends, however it ends.

    Args:
      path: the directory; the lock is its file ``lock``, which says who has it.
      say: is told of a run that left its name but is gone, and of a file system without locks.
      shared: whether others that share it may hold it at the same time. Who does not share it
        holds it alone. Those who share it leave no name there, as they are many.

    Raises:
      InUseError: naming who holds it.
      WorkdirError: if it cannot be opened.
    """
    # Opened for appending, so that a holder's name is not lost before it is read.
    with _opened(path / LOCK) as file:
        file.seek(0)
        holder = file.read().strip()
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # Another process has it: its name is what it wrote.
            raise InUseError(
                f"workdir {path} is in use by {holder or 'other processes'}; wait for it, stop "
                "it, or choose another --workdir"
            ) from error
        except OSError as error:
            # Some network file systems have no locks.
            say(f"{path} cannot be locked ({error.strerror}); see to it that no other run uses it")
        else:
            if holder:
                say(f"the lock of {path} was left by {holder}, which is gone")
        file.truncate(0)
        if shared:
            yield
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        try:
            yield
        finally:  # only a process that was killed leaves its name
            file.truncate(0)


def _opened(path: pathlib.Path) -> IO[str]:
    """Open the file of a lock, whatever is in it."""
    try:
        return path.open("a+", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise WorkdirError(
            f"{path} cannot be opened to lock {path.parent}: {error.strerror}; move or delete it, "
            "or choose another --workdir"
        ) from error
