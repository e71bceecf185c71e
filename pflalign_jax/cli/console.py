"""What a person sees of a run: a progress bar while it runs, a table at the end."""

import contextlib
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
from pflalign_jax.runs.metrics import HEADLINE

STATISTICS = ("mean", "weighted", "std", "worst_decile", "min")


def headline(row: dict[str, float]) -> tuple[str, float]:
    """Return the name and value of the score to show: on validation, else on test."""
    for split in ("validation", "test"):
        name = HEADLINE.format(split=split)
        if name in row:
            return name, row[name]
    raise KeyError(f"neither a validation nor a test score among {sorted(row)}")


@contextlib.contextmanager
def progress(
    rounds: int, cohort: int, console: Console, rows: Sequence[dict] = ()
) -> Iterator[Callable[[int, dict | None], None]]:
    """Show progress; yields the ``on_round`` callback of `pflalign_jax.runs.loop.train`.

    On a terminal a bar with the round, the time left, seconds per round, the headline score, the
    best of it so far, and memory; elsewhere a line for every evaluated round, at most one every two
    seconds, and the last.

    Args:
      rounds: of the run.
      cohort: clients of a round.
      console: where to.
      rows: of ``metrics.jsonl``, of a run that goes on.
    """
    best = max((headline(row)[1] for row in rows), default=float("-inf"))

    def scores(row):
        nonlocal best
        name, value = headline(row)
        best = max(best, value)
        whose, held = memory()
        return name, f"{100 * value:.2f} (best {100 * best:.2f})", f"{held / 1e9:.1f} GB {whose}"

    if not console.is_terminal:
        shown = 0.0

        def line(done, row):
            nonlocal shown
            if row:
                name, score, held = scores(row)
                if time.monotonic() - shown > 2 or done == rounds:
                    shown = time.monotonic()
                    console.print(
                        f"round {done}/{rounds}  cohort {cohort}  {name} {score} %  "
                        f"{row['seconds']:.2f} s/round  {held}",
                        soft_wrap=True,
                    )

        yield line
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
    title = Text()
    with Live(Group(title, bar), console=console, refresh_per_second=4):
        task = bar.add_task("", total=rounds, score="", speed="", held="")

        def update(done, row):
            fields = {}
            if row:
                name, score, held = scores(row)
                title.plain = f"{cohort} clients a round; {name} in %"
                fields = {"score": score, "held": held, "speed": f"{row['seconds']:.2f} s/round"}
            bar.update(task, completed=done, **fields)

        yield update


@contextlib.contextmanager
def comparison_progress(
    console: Console,
) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Show how far a comparison is; yields its ``say`` and its ``count`` (`experiments.compare`).

    On a terminal a bar over the rounds of all trials with the trial that runs and the time left;
    elsewhere a line per trial.
    """
    rounds = {"total": 0, "completed": 0}
    if not console.is_terminal:

        def count(expected, done):
            rounds["total"] += expected
            rounds["completed"] += done

        def say(text):
            seen = f"{rounds['completed']}/{rounds['total']} rounds  {text}"
            console.print(seen, markup=False, highlight=False, soft_wrap=True)

        yield say, count
        return
    bar = Progress(
        MofNCompleteColumn(),
        TextColumn("rounds"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        console=console,
    )
    title = Text()
    with Live(Group(title, bar), console=console, refresh_per_second=4):
        task = bar.add_task("", total=0)

        def update(expected, done):
            rounds["total"] += expected
            rounds["completed"] += done
            bar.update(task, **rounds)

        def name(text):
            title.plain = text

        yield name, update


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
