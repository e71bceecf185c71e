"""How a run ends early when it is asked to."""

import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last comes when a terminal is closed; under nohup it is ignored, and stays so."""


class StoppedError(Exception):
    """A run that stopped when it was asked to.

    Attributes:
      signum: the signal.
      done: rounds done.
    """

    def __init__(self, signum: int, done: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after round {done}")
        self.signum, self.done = signum, done


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal to stop for, 0 as long as there is none.

    A second signal does at once what it always did.
    """
    seen = [0]
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def put_back() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    # Only a note: the round is finished and saved before the run ends.
    def remember(signum: int, frame: object) -> None:
        seen[0] = signum
        put_back()

    for signum in before:
        signal.signal(signum, remember)
    try:
        yield lambda: seen[0]
    finally:
        put_back()
