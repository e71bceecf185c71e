"""What a person sees of a run: a progress bar while it runs, a table at the end."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.training import HEADLINE


def headline(row: dict[str, float]) -> tuple[str, float]:
    """Return the name and value of the score to show: on validation, else on test."""
    for split in ("validation", "test"):
        name = HEADLINE.format(split=split)
        if name in row:
            return name, row[name]
    raise KeyError(f"neither a validation nor a test score among {sorted(row)}")


@contextlib.contextmanager
def progress(rounds: int, console: Console) -> Iterator[Callable[[int, dict | None], None]]:
    """Show progress; yields the ``on_round`` callback of `experiments.training.train`.

    On a terminal a bar with the round, the time left and the headline score; elsewhere a line for
    every evaluated round, at most one every two seconds, and the last.
    """
    if not console.is_terminal:
        shown = 0.0

        def line(done, row):
            nonlocal shown
            if row and (time.monotonic() - shown > 2 or done == rounds):
                shown = time.monotonic()
                name, value = headline(row)
                console.print(
                    f"round {done}/{rounds}  {name} {value:.4f}  {row['seconds']:.2f} s/round"
                )

        yield line
        return
    bar = Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[score]}"),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=rounds, score="")

        def update(done, row):
            fields = {}
            if row:
                name, value = headline(row)
                fields = {"score": f"{name} {value:.4f}"}
            bar.update(task, completed=done, **fields)

        yield update


def score_table(summary: dict[str, Any]) -> Table:
    """Return the table of scores: full names, last round and best round on validation."""
    best, last = summary["best_validation"], summary["last"]
    columns = [("last", last)] + ([("best validation", best)] if best else [])
    table = Table(
        title=f"{summary['algorithm']} on {summary['dataset']['name']}: accuracy in %",
        caption="mean, weighted, std, worst decile and minimum are over clients; best validation = "
        "the round with the highest "
        + (summary["chosen_by"] or "(no validation split: not chosen)"),
    )
    table.add_column("split / model / stage / statistic")
    for name, row in columns:
        table.add_column(f"{name} (round {row['round']})", justify="right")
    previous = None
    for key in last:
        quantity, name = key.split("/", 1) if "/" in key else (key, "")
        if quantity != "accuracy":
            continue
        block = name.rsplit("/", 1)[0]
        if previous not in (None, block):
            table.add_section()
        previous = block
        table.add_row(name, *(f"{100 * row[key]:.2f}" for _, row in columns))
    return table
