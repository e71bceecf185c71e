"""How a run ends early when it is asked to."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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


class _Raise:
    """A handler of signals that raises KeyboardInterrupt, and remembers the signal.

    JAX calls back where what is raised is printed and gets lost.
    """

    seen = 0

    def __call__(self, signum: int, frame: object) -> None:
        self.seen = signum
        raise KeyboardInterrupt(signum)


def interrupted_by(error: KeyboardInterrupt) -> signal.Signals:
    """Return the signal for which an error was raised."""
    return signal.Signals(error.args[0] if error.args else signal.SIGINT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for every signal of `SIGNALS`, not for Ctrl-C alone.

    So what is open is closed, and a lock is let go. `interrupted_by` tells the signal.
    """
    with _handled(_Raise(), _handlers()):
        yield


def _handlers() -> dict[signal.Signals, Any]:
    """Return what signals call now, without one that is ignored on purpose."""
    found = {signum: signal.getsignal(signum) for signum in SIGNALS}
    if found[signal.SIGHUP] is signal.SIG_IGN:
        del found[signal.SIGHUP]
    return found


@contextlib.contextmanager
def _handled(
    handler: Callable[[int, Any], None], before: Mapping[signal.Signals, Any]
) -> Iterator[None]:
    """Let signals call a handler, and afterwards what they called before."""
    for signum in before:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        _put_back(before)


def _put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Let signals call these handlers."""
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal to stop for, 0 as long as there is none.

    A second signal does at once what it always did.
    """
    before = _handlers()
    # Of a signal that came before, the error may have been lost.
    seen = [max((h.seen for h in before.values() if isinstance(h, _Raise)), default=0)]

    # Only a note: the round is finished and saved before the run ends.
    def remember(signum: int, frame: object) -> None:
        seen[0] = signum
        _put_back(before)

    with _handled(remember, before):
        yield lambda: seen[0]
