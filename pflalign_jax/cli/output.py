"""What a command prints is not worth its run: output that fails is given up."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

FIRST = 3
"""File descriptors below are input, output and errors."""


class GivenUp:
    """A stream of text that goes nowhere once writing to it has failed.

    A reader like ``head -1`` ends, a terminal is closed, a disk is full: none of them is a reason
    to lose a run.

    Args:
      stream: output or errors of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or do nothing."""
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Push what was written, or do nothing."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # What is still in the stream's memory, and what others write to it, goes nowhere as well.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def output_may_fail() -> Iterator[None]:
    """Let what is done in here go on when its output or its errors cannot be written any more."""
    # Files opened later must not take the place of closed streams: libraries would write to them.
    with contextlib.suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) < FIRST:
            pass
        os.close(handle)
    before = sys.stdout, sys.stderr  # None where they are closed
    wrapped = [None if stream is None else GivenUp(stream) for stream in before]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        # Here, as Python itself ends with an error if this fails.
        for stream in wrapped:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
