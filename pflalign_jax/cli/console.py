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
from pflalign_jax.runs.headline import ACCURACY, Headline
from pflalign_jax.runs.metrics import Row

STATISTICS = ("mean", "weighted", "std", "worst_decile", "min")

SHOWN_IN_BAR = ("speed", "score", "held")

PAUSE = 2.0
"""Seconds between two lines, at least, where there is no terminal."""


def new_console(**options: Any) -> Console:
    """Return a console that prints names as they are: ``[red]`` and ``:smile:`` are no markup.

    Args:
      options: of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, **options)


def say_on(console: Console) -> Callable[[str], None]:
    """Return what prints a line as it is, without breaking it."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say


@dataclasses.dataclass
class _Shown:
    """What is shown of evaluated rounds, and the best score on validation so far."""

    headline: Headline
    best: float | None = None

    def texts(self, row: Row) -> tuple[str, str, str]:
        """Return the name of the headline, its value with the best so far, and memory."""
        headline, whose_memory = self.headline, memory()
        held = f"{whose_memory[1] / 1e9:.1f} GB {whose_memory[0]}"
        for split in ("validation", "test"):
            # Missing where nobody has examples, or a value, in a split; None if it is not finite.
            name = headline.key(split)
            if row.get(name) is not None:
                break
        else:
            return headline.key("test"), "has no value", held
        score = _text(headline, row[name])
        if split == "validation":  # nothing is chosen by a score on test data, not even for show
            self.add(row[name])
            score += f" (best {_text(headline, self.best)})"
        return name, score + (f" {headline.unit}" if headline.unit else ""), held

    def add(self, value: float | None) -> None:
        """Let a score on validation count for the best."""
        known = [x for x in (self.best, value) if x is not None]
        self.best = max(known, key=self.headline.merit, default=None)


def _text(headline: Headline, value: float | None) -> str:
    """Return a score with two digits after the point, or as many as tell it without a unit."""
    if value is None:
        return "not finite"
    shown = headline.shown(value)
    return f"{shown:.2f}" if headline.percent else f"{shown:#.5g}"


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
                f"round {done}/{self.rounds}  cohort {self.cohort}  {name} {score}  "
                f"{row['seconds']:.2f} s/round  {held}",
                soft_wrap=True,
            )


@contextlib.contextmanager
def progress(
    rounds: int,
    cohort: int,
    console: Console,
    rows: Sequence[Row] = (),
    headline: Headline = ACCURACY,
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
      headline: of the run's task.
    """
    shown = _Shown(headline)
    for row in rows:
        shown.add(row.get(headline.key("validation")))
    if not console.is_terminal:
        yield _Lines(rounds, cohort, console, shown).on_round
        return
    bar = Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in SHOWN_IN_BAR),
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
                title.plain = f"{cohort} clients a round; {name}"
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

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Let all that is said meanwhile begin with a name."""
        say = self.say
        self.say = lambda text: say(f"{name}: {text}")
        try:
            yield
        finally:
            self.say = say

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
    """Return the table of scores: a row for each split / model / stage, a column per statistic.

    Args:
      summary: as in ``summary.json``.
    """
    headline = Headline(**summary["headline"])
    sections = [("last round", summary["last"]), ("best round", summary["best_validation"])]
    table = Table(
        title=f"{summary['algorithm']} on {summary['dataset']['name']}: {headline.title}",
        caption="Columns are statistics over clients: mean counts clients equally, weighted by "
        "examples; worst_decile is the mean of the worst 10 % of clients. "
        + (f"Best round: chosen by {summary['chosen_by']}." if summary["chosen_by"] else ""),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # Rows are named by models, columns by statistics over clients.
    table.add_column("split / model / stage", no_wrap=True)
    rows = [row for _, row in sections if row is not None]
    prefix = f"{headline.metric}/"
    lacking = any(key.startswith(prefix) and key.endswith("/without") for r in rows for key in r)
    statistics = [*STATISTICS, *["without"] * lacking]
    if not headline.higher_is_better:
        statistics.remove("min")  # it would be the best client
    for statistic in statistics:
        table.add_column(statistic, justify="right", no_wrap=True)
    for title, row in sections:
        if row is None:
            continue
        table.add_section()
        table.add_row(Text(f"{title} ({row['round']})", "bold"))
        for name in names(row, headline.metric):
            table.add_row(name, *(_cell(headline, row, name, of) for of in statistics))
    if lacking:
        table.caption = f"{table.caption} Without: clients that have no value, as one label gives."
    return table


def _cell(headline: Headline, row: Row, name: str, statistic: str) -> str:
    key = f"{headline.metric}/{name}/{statistic}"
    if statistic == "without":
        return f"{row.get(key, 0):g}"
    return _text(headline, row[key]) if key in row else ""


def names(row: Row, metric: str) -> list[str]:
    """Return the ``split/model[/stage]`` names that a row of metrics has values of a metric for."""
    keys = (key.split("/") for key in row if key.startswith(f"{metric}/"))
    return sorted(dict.fromkeys("/".join(parts[1:-1]) for parts in keys))
