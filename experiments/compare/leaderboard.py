"""The leaderboard of a comparison: for a terminal, for readers, and for programs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from experiments.compare import pictures
from experiments.compare.columns import (
    EDGE,
    UNCLEAR,
    cells,
    columns_of,
    numbers,
    shown_by_default,
)
from experiments.compare.entries import Entry, missing_rivals, ranked
from experiments.compare.verdict import standings_of, verdict
from experiments.output import markdown, write_csv, write_figure
from pflalign_jax.runs import files

GAP = 2
"""Characters between two columns of a terminal."""

MEANING = (
    f"adapted: the test score of every client's own model after its local steps. {UNCLEAR} cannot "
    f"be told from the best (interval over clients, or seeds that disagree). {EDGE} at the edge of "
    "what was tried."
)
"""What the columns of a terminal say."""


def tables(entries: Sequence[Entry], width: int, names: Sequence[str] = ()) -> list[Table]:
    """Return the leaderboard to print, as several tables where the columns need more width.

    No text is cut or broken: what does not fit beside the names of methods begins a table of its
    own. Only what is wider than a line alone is folded.

    Args:
      entries: the methods' results.
      width: characters of a line.
      names: of the columns to show, of `experiments.compare.columns.NAMES`; those that say nothing
        in this comparison are left out. Empty: a few.
    """
    columns = columns_of(entries)
    shown = [name for name in names or shown_by_default(entries) if name in columns]
    best_first = ranked(entries)
    texts = {name: [columns[name].text(e) for e in best_first] for name in ("method", *shown)}
    heads = {name: columns[name].short for name in texts}
    widths = {name: max(map(len, (heads[name], *texts[name]))) for name in texts}
    parts: list[list[str]] = []
    room = 0
    for name in shown:
        if not parts or widths[name] + GAP > room:
            parts.append([])
            room = width - widths["method"]
        parts[-1].append(name)
        room -= widths[name] + GAP
    title = f"test {entries[0].headline.title}, mean over clients"
    whole = all(widths["method"] + GAP + widths[name] <= width for name in shown)
    return [_table(title, ["method", *part], heads, texts, whole) for part in parts]


def _table(
    title: str,
    names: Sequence[str],
    heads: Mapping[str, str],
    texts: Mapping[str, Sequence[str]],
    whole: bool,
) -> Table:
    padding = (0, GAP - 1, 0, 0)  # the box has one, too
    table = Table(
        title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding
    )
    for name in names:
        side: Literal["left", "right"] = "left" if name == "method" else "right"
        table.add_column(heads[name], justify=side, no_wrap=whole, overflow="fold")
    for row in zip(*(texts[name] for name in names), strict=True):
        table.add_row(*row)
    return table


def write(
    root: pathlib.Path,
    entries: Sequence[Entry],
    command: str,
    config: ConfigDict,
    left_out: Mapping[str, str] | None = None,
    repeat: Mapping[str, str] | None = None,
) -> None:
    """Write ``leaderboard.md``, ``.csv`` and ``.png`` and ``searches.png`` to a directory.

    Args:
      root: the comparison's directory.
      entries: the methods' results.
      command: that gives them again.
      config: of the comparison.
      left_out: methods that could not take part, and why.
      repeat: from a method to the command that runs its chosen setting again.
    """
    names, values = numbers(entries)
    write_csv(root / "leaderboard.csv", [names, *values])
    files.write_text(root / "leaderboard.md", page(entries, command, config, left_out, repeat))
    write_figure(root / "leaderboard.png", pictures.chart(entries))
    searches = pictures.draw_searches(pictures.searches_of(entries), entries[0].headline)
    write_figure(root / "searches.png", searches)


def page(
    entries: Sequence[Entry],
    command: str,
    config: ConfigDict,
    left_out: Mapping[str, str] | None = None,
    repeat: Mapping[str, str] | None = None,
) -> str:
    """Return ``leaderboard.md``; see `write` for the arguments."""
    titles, rows = cells(entries)
    lines = [
        f"# {config.dataset.name}: {config.rounds} rounds, cohort "
        f"{config.cohort_size or 'of all clients'}",
        "",
        f"    {command}",
        "",
        verdict(standings_of(entries), entries[0].headline),
        "",
        _about(entries, config),
        "",
        *markdown(titles, rows),
        "",
        *(f"{method} was left out: {reason}." for method, reason in (left_out or {}).items()),
        *(f"{name} was not compared." for name in missing_rivals(entries)),
    ]
    if repeat:
        lines += ["", "The chosen settings again, with the first seed:", ""]
        lines += [f"    {line}" for line in repeat.values()]
    return "\n".join([*lines, ""])


def _about(entries: Sequence[Entry], config: ConfigDict) -> str:
    """Return the paragraph that says what the table's numbers are."""
    headline = entries[0].headline
    shorter = config.compare.search_rounds
    searched_at = "the last round" if shorter is None else f"round {shorter}"
    better = "" if headline.higher_is_better else "less is better, and a gain is a decrease; "
    points = "percentage points" if headline.percent else f"units of {headline.metric}"
    return (
        f"Test {headline.title}, mean over clients, after the last round; {better}± is the "
        "standard deviation "
        f'over {max(e.seeds for e in entries)} seeds. "At the best round" is personal/adapted of '
        "the evaluated round that did best on validation, seed by seed. Step sizes were chosen by "
        f"{headline.key('validation')} of {searched_at} with seed 0; {EDGE} lies at the edge of "
        "what was tried (searches.png). Differences are of personal/adapted, paired client by "
        f"client, in {points}, with 95 % intervals (bootstrap over clients, each with all seeds) "
        f"and clients won and lost. {UNCLEAR} cannot be told from the best: the interval has 0 in "
        "it, or seeds disagree on which is better. "
        f"Partition {entries[0].partition_hash[:16]}."
    )
