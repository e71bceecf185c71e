"""What a person sees of a run: a progress bar while it runs, a table at the end."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pflalign_jax.runs.hardware import memory
from pflalign_jax.runs.metrics import CHOSEN_BY, HEADLINE, Row

STATISTICS = ("mean", "weighted", "std", "worst_decile", "min")

PAUSE = 2.0
"""Seconds between two lines, at least, where there is no terminal."""


def say_on(console: Console) -> Callable[[str], None]:
    """Return what prints a line as it is, without markup and without breaking it."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say


def headline(row: Row) -> tuple[str, float]:
    """Return the name and value of the score to show: on validation, else on test."""
    for split in ("validation", "test"):
        name = HEADLINE.format(split=split)
        if name in row:
            return name, row[name]
    raise KeyError(f"neither a validation nor a test score among {sorted(row)}")


@dataclasses.dataclass
class _Shown:
    """What is shown of evaluated rounds, and the best score so far."""

    best: float

    def texts(self, row: Row) -> tuple[str, str, str]:
        """Return the name of the headline, its value with the best so far, and memory."""
        name, value = headline(row)
        self.best = max(self.best, value)
        whose, held = memory()
        score = f"{100 * value:.2f}"
        if name == CHOSEN_BY:  # nothing is chosen by a score on test data, not even for show
            score += f" (best {100 * self.best:.2f})"
        return name, score, f"{held / 1e9:.1f} GB {whose}"


@dataclasses.dataclass
class _Lines:
    """Progress in lines; see `progress`."""

    rounds: int
    cohort: int
    console: Console
    shown: _Shown
    printed: float = 0.0  # when, on the monotonic clock

    def on_round(self, done: int, row: Row | None) -> None:
        if row is None:
            return
        name, score, held = self.shown.texts(row)
        if time.monotonic() - self.printed > PAUSE or done == self.rounds:
            self.printed = time.monotonic()
            self.console.print(
                f"round {done}/{self.rounds}  cohort {self.cohort}  {name} {score} %  "
                f"{row['seconds']:.2f} s/round  {held}",
                soft_wrap=True,
            )


@contextlib.contextmanager
def progress(
    rounds: int, cohort: int, console: Console, rows: Sequence[Row] = ()
) -> Iterator[Callable[[int, Row | None], None]]:
    """Show progress; yields an ``on_round`` for `pflalign_jax.runs.run`.

    On a terminal a bar with the round, the time left, seconds per round, the headline score, the
    best of it so far where it is on validation, and memory; elsewhere a line for every evaluated
    round, at most one every `PAUSE` seconds, and the last.

    Args:
      rounds: of the run.
      cohort: clients of a round.
      console: where to.
      rows: of ``metrics.jsonl``, of a run that goes on.
    """
    shown = _Shown(max((headline(row)[1] for row in rows), default=float("-inf")))
    if not console.is_terminal:
        yield _Lines(rounds, cohort, console, shown).on_round
        return
    bar = Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[score]}"),
        TextColumn("{task.fields[held]}"),
        console=console,
    )
    # The headline is too long for the bar's line and stands above it.
    title = Text()
    with Live(Group(title, bar), console=console, refresh_per_second=4):
        task = bar.add_task("", total=rounds, score="", speed="", held="")

        def on_round(done: int, row: Row | None) -> None:
            fields: dict[str, Any] = {}
            if row:
                name, score, held = shown.texts(row)
                title.plain = f"{cohort} clients a round; {name} in %"
                fields = {"score": score, "held": held, "speed": f"{row['seconds']:.2f} s/round"}
            bar.update(task, completed=done, **fields)

        yield on_round


@dataclasses.dataclass
class ComparisonProgress:
    """How far a comparison is.

    Attributes:
      say: tells which trial runs.
      changed: called when the two numbers have changed.
      expected: rounds of all trials that are known to come, and those done.
      done: rounds done.
    """

    say: Callable[[str], None] = lambda text: None
    changed: Callable[[int, int], None] = lambda expected, done: None
    expected: int = 0
    done: int = 0

    def expect(self, rounds: int) -> None:
        """Count rounds that are to come."""
        self.expected += rounds
        self.changed(self.expected, self.done)

    def add(self, rounds: int) -> None:
        """Count rounds that are done."""
        self.done += rounds
        self.changed(self.expected, self.done)


@contextlib.contextmanager
def comparison_progress(console: Console) -> Iterator[ComparisonProgress]:
    """Show how far a comparison is.

    On a terminal a bar over the rounds of all trials with the trial that runs and the time left;
    elsewhere a line per trial.
    """
    progress = ComparisonProgress()
    if not console.is_terminal:
        print_line = say_on(console)
        progress.say = lambda text: print_line(
            f"{progress.done}/{progress.expected} rounds  {text}"
        )
        yield progress
        return
    bar = Progress(
        MofNCompleteColumn(),
        TextColumn("rounds"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        console=console,
    )
    title = Text()

    def say(text: str) -> None:
        title.plain = text

    with Live(Group(title, bar), console=console, refresh_per_second=4):
        task = bar.add_task("", total=0)
        progress.say = say
        progress.changed = lambda expected, done: bar.update(task, total=expected, completed=done)
        yield progress


def score_table(summary: dict[str, Any]) -> Table:
    """Return the table of scores: a row for each split / model / stage, a column per statistic."""
    sections = [("last round", summary["last"]), ("best round", summary["best_validation"])]
    table = Table(
        title=f"{summary['algorithm']} on {summary['dataset']['name']}: accuracy in %",
        caption="Columns are statistics over clients: mean counts clients equally, weighted by "
        "examples; worst_decile is the mean of the worst 10 % of clients. "
        + (f"Best round: chosen by {summary['chosen_by']}." if summary["chosen_by"] else ""),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # Rows are named by models, columns by statistics over clients.
    table.add_column("split / model / stage", no_wrap=True)
    for statistic in STATISTICS:
        table.add_column(statistic, justify="right", no_wrap=True)
    for title, row in sections:
        if row is None:
            continue
        table.add_section()
        table.add_row(f"[bold]{title} ({row['round']})")
        for name in names(row):
            values = (row[f"accuracy/{name}/{statistic}"] for statistic in STATISTICS)
            table.add_row(name, *(f"{100 * value:.2f}" for value in values))
    return table


def names(row: dict[str, float]) -> list[str]:
    """Return the ``split/model[/stage]`` names that a row of metrics has accuracies for."""
    keys = (key.split("/") for key in row if key.startswith("accuracy/"))
    return sorted(dict.fromkeys("/".join(parts[1:-1]) for parts in keys))
