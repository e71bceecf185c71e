"""When a run writes what its rounds measured besides scores to ``diagnostics.jsonl``."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from pflalign_jax import diagnostics
from pflalign_jax.runs import round_files

PAUSE = 1.0
"""Seconds between two writes, at least."""


@dataclasses.dataclass
class DiagnosticsLog:
    """Keeps what rounds measured until it is written.

    Pushing a line to disk takes a tenth of a round of a few milliseconds, so lines are written
    `PAUSE` after those before, with a checkpoint, and when the run ends, however it does.

    Attributes:
      workdir: of the run; None: everything is forgotten.
      added: rounds and their `RoundResult.metrics` that are not written yet.
      written: when lines were last written, on the monotonic clock.
    """

    workdir: pathlib.Path | None
    added: list[tuple[int, Mapping[str, Any]]] = dataclasses.field(default_factory=list)
    written: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Add what a round measured."""
        if self.workdir is None:
            return
        self.added.append((done, metrics))
        if time.monotonic() - self.written > PAUSE:
            self.write()

    def write(self) -> None:
        """Write what was added."""
        rows = [
            {"round": done, **diagnostics.diagnostics_summary(metrics)}
            for done, metrics in self.added
        ]
        self.added.clear()
        self.written = time.monotonic()
        if rows and self.workdir is not None:
            round_files.append_diagnostics(self.workdir, rows)

    def close(self) -> None:
        """Write what was added, for good."""
        self.write()
