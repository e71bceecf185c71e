"""When a run writes what its rounds measured beside scores to ``diagnostics.jsonl``."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pflalign_jax import diagnostics
from pflalign_jax.runs import files

PAUSE = 1.0
"""Seconds between two writes, at least."""


class Diary(NamedTuple):
    """Keeps what rounds measured until it is written.

    Pushing a line to disk takes a tenth of a round of a few milliseconds, so lines are written
    `PAUSE` after those before, with a checkpoint, and when the run ends, however it does.

    Attributes:
      add: ``(round, metrics) -> None``, with `RoundResult.metrics`.
      write: writes what was added.
      close: likewise.
    """

    add: Callable[[int, Mapping[str, Any]], None]
    write: Callable[[], None]
    close: Callable[[], None]


def keep_diary(workdir: pathlib.Path | None) -> Diary:
    """Return the diary of the run in ``workdir``; None: one that forgets."""
    added: list[tuple[int, Mapping[str, Any]]] = []
    written = time.monotonic()

    def add(done, metrics):
        if workdir is None:
            return
        added.append((done, metrics))
        if time.monotonic() - written > PAUSE:
            write()

    def write():
        nonlocal written
        rows = [{"round": done, **diagnostics.describe(metrics)} for done, metrics in added]
        added.clear()
        written = time.monotonic()
        if rows and workdir is not None:
            files.append_lines(workdir / "diagnostics.jsonl", rows)

    return Diary(add, write, write)
