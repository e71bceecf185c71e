"""The tables and the picture of a comparison, from its trials' files."""

from __future__ import annotations

import csv
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from experiments.compare.trials import OwnGrid, Trial
from pflalign_jax.cli import plots
from pflalign_jax.runs import files
from pflalign_jax.runs.csv_cells import cell
from pflalign_jax.runs.headline import PERSONAL, Headline
from pflalign_jax.runs.metrics import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIVALS = ("local", "fedavg")
"""Whose adapted clients the others are compared with, client by client."""

SCORES = ("global", "personal/received", "personal/adapted")

RANKED_BY = f"{PERSONAL}/mean"
"""The score on test data by which methods are ordered."""


class Entry(NamedTuple):
    """A method's result.

    Attributes:
      method: its name.
      learning_rate: the step size chosen.
      at_edge: whether it is the least or the largest that was tried.
      headline: the metric of all scores. Scores, and gains, are as it is shown: in percent where
        it is a share.
      searched: step size to validation score, None where training diverged.
      own: the own hyperparameter's name, chosen value and values tried, as text; "" without.
      seeds: how many seeds of the chosen setting are in the scores.
      diverged: how many are not, as their training diverged.
      nonfinite: messages that were left out of all seeds' rounds, as they were not finite.
      adapted_with: step size of the last adaptation after the last round, of all seeds; empty
        where it is that of training.
      scores: ``model[/stage]/statistic`` to the values of all seeds, on test data.
      best_round: personal/adapted/mean of the round with the best validation score, of all seeds.
      clients: client to its adapted test score, the mean over seeds.
      seconds: per round, the median over seeds.
      bytes_up, bytes_down: per round.
      partition_hash: of the data.
      validation: mean validation score of the chosen setting over those seeds.
    """

    method: str
    headline: Headline
    learning_rate: float
    at_edge: bool
    searched: dict[float, float | None]
    own: str
    seeds: int
    diverged: int
    nonfinite: int
    adapted_with: list[float]
    scores: dict[str, list[float]]
    best_round: list[float]
    clients: dict[str, float]
    seconds: float
    bytes_up: int
    bytes_down: int
    partition_hash: str
    validation: float


def entry(
    method: str,
    best: Trial,
    searched: Sequence[Trial],
    tuned: OwnGrid | None,
    repeats: Sequence[Trial],
) -> Entry:
    """Return the `Entry` of a method.

    Args:
      method: its name.
      best: the chosen trial.
      searched: the trials of its step sizes.
      tuned: what was tried of its own hyperparameter; None without.
      repeats: the trials of the chosen setting, one per seed.
    """
    own = ""
    if tuned is not None:  # as text: a default may be None, which is no number
        known = sorted(value for value in (tuned.default, *tuned.values) if value is not None)
        chosen = tuned.default if best.own is None else best.own
        own = f"{tuned.field} {'none' if chosen is None else f'{chosen:g}'}"
        own += f"; {', '.join(f'{value:g}' for value in known)}"
    summaries = [files.read_summary(t.path) for t in repeats]
    pairs = zip(repeats, summaries, strict=True)
    trained = [trial.path for trial, summary in pairs if not files.has_diverged(summary)]
    whole = [summary for summary in summaries if not files.has_diverged(summary)]
    rows = [s["last"] for s in whole]
    rates = [t.learning_rate for t in searched]
    counted = [row["clients/nonfinite"] for t in repeats for row in files.read_rows(t.path)]
    headline = files.read_headline(best.path)

    def validation_score(trial: Trial) -> float | None:
        return headline.shown(headline.merit(trial.merit)) if np.isfinite(trial.merit) else None

    finite = [score for trial in repeats if (score := validation_score(trial)) is not None]
    return Entry(
        method=method,
        headline=headline,
        learning_rate=best.learning_rate,
        at_edge=len(rates) > 1 and best.learning_rate in (min(rates), max(rates)),
        searched={trial.learning_rate: validation_score(trial) for trial in searched},
        own=own,
        seeds=len(rows),
        diverged=len(summaries) - len(rows),
        nonfinite=round(sum(counted)),
        adapted_with=[row["adapt_learning_rate"] for row in rows if "adapt_learning_rate" in row],
        scores=_scores(rows, headline),
        best_round=_known([s["best_validation"] or {} for s in whole], headline),
        clients=_clients(trained, headline),
        seconds=float(np.median([row["seconds"] for row in rows])) if rows else float("nan"),
        bytes_up=rows[0]["bytes_up"] if rows else 0,
        bytes_down=rows[0]["bytes_down"] if rows else 0,
        partition_hash=whole[0]["dataset"]["partition_hash"] if whole else "",
        validation=float(np.mean(finite)) if finite else float("nan"),
    )


def _scores(rows: Sequence[Row], headline: Headline) -> dict[str, list[float]]:
    """Return ``model[/stage]/statistic`` to the test scores of all seeds."""
    scores = {}
    for name, statistic in itertools.product(SCORES, ("mean", "weighted", "worst_decile")):
        key = f"{headline.metric}/test/{name}/{statistic}"
        known = [headline.shown(row[key]) for row in rows if row.get(key) is not None]
        if len(known) == len(rows):  # not so of methods without a global model
            scores[f"{name}/{statistic}"] = known
    return scores


def _known(rows: Sequence[Row], headline: Headline) -> list[float]:
    """Return the headline on test data of the rows that have it."""
    found = (row.get(headline.key("test")) for row in rows)
    return [headline.shown(value) for value in found if value is not None]


def _clients(paths: Sequence[pathlib.Path], headline: Headline) -> dict[str, float]:
    """Return every client's adapted test score, the mean over the runs of all seeds."""
    # The same clients over seeds: a mean over seeds for each, then gains are paired.
    clients: dict[str, list[float]] = {}
    for path in paths:
        for client, row in files.last_scores(path, f"test/{PERSONAL}").items():
            value = headline.shown(row.values[headline.metric])
            if np.isfinite(value):  # some metrics have no value for some clients
                clients.setdefault(client, []).append(value)
    return {client: float(np.mean(values)) for client, values in clients.items()}


def missing_rivals(entries: list[Entry]) -> list[str]:
    """Return which of `RIVALS` a comparison lacks, without which its numbers say little."""
    return [name for name in RIVALS if name not in {e.method for e in entries}]


def gain(found: Entry, rival: Entry) -> tuple[float, int, int]:
    """Return how much better clients are in the mean, how many are better, and how many worse."""
    _, differences = paired(found.clients, rival.clients, found.headline)
    if not len(differences):
        return float("nan"), 0, 0
    # Scores are shares of a few examples: equal ones differ by rounding at most.
    won, lost = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    return float(differences.mean()), won, lost


def paired(
    found: Mapping[str, float], rival: Mapping[str, float], headline: Headline
) -> tuple[list[str], np.ndarray]:
    """Return the clients that both have scores of, and by how much the first one's is better."""
    common = sorted(found.keys() & rival.keys())
    return common, np.array([headline.merit(found[c] - rival[c]) for c in common])


def cells(entries: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return the columns' titles, and a row of texts per entry, the best on test data first."""
    headline = entries[0].headline
    rivals = [e for name in RIVALS for e in entries if e.method == name]
    # Nothing is said of it where every method adapts as it trains.
    chooses = any(found.adapted_with for found in entries)
    titles = ["method", "step size; grid", "own; grid", *(["adapted with"] if chooses else [])]
    titles += ["seeds", "validation", *SCORES]
    titles += ["at the best round", "worst decile"]
    titles += [f"over {rival.method} (won/lost)" for rival in rivals]
    titles += ["MB up / down per round", "s per round"]

    def spread(values: Sequence[float]) -> str:
        mean, deviation = moments(values)
        text = headline.text(mean) if values else ""
        return text + (f" ± {headline.spread_text(deviation)}" if len(values) > 1 else "")

    def over(found: Entry, rival: Entry) -> str:
        if found is rival:
            return ""
        mean, won, lost = gain(found, rival)
        return f"{headline.text(mean, sign='+')} ({won}/{lost})"

    rows = []
    for found in sorted(entries, key=_rank, reverse=True):
        grid = ", ".join(f"{rate:g}" for rate in sorted(found.searched))
        edge = "†" if found.at_edge else ""
        row = [found.method, f"{found.learning_rate:g}{edge}; {grid}", found.own]
        if chooses:
            row += [", ".join(f"{rate:g}" for rate in found.adapted_with)]
        row += [_seeds(found), headline.text(found.validation)]
        row += [spread(found.scores.get(f"{name}/mean", [])) for name in SCORES]
        row += [spread(found.best_round)]
        row += [spread(found.scores.get("personal/adapted/worst_decile", []))]
        row += [over(found, rival) for rival in rivals]
        megabytes = f"{found.bytes_up / 1e6:.3g} / {found.bytes_down / 1e6:.3g}"
        rows.append([*row, megabytes, f"{found.seconds:.3g}"])
    return titles, rows


def _rank(found: Entry) -> float:
    values = found.scores.get(RANKED_BY, [])
    return found.headline.merit(float(np.mean(values))) if values else -np.inf


def _seeds(found: Entry) -> str:
    """Return how many seeds there are, and what went wrong in them."""
    text = str(found.seeds)
    if found.diverged:
        text += f" of {found.seeds + found.diverged}, others diverged"
    if found.nonfinite:
        text += f"; {found.nonfinite} messages not finite"
    return text


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds, NaN where there are too few."""
    mean = float(np.mean(values)) if values else np.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def numbers(entries: list[Entry]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns' titles and a row per entry for programs to read: all that is known.

    Scores that are shares are in percent, gains in percentage points; what is not known is empty.
    """
    names = list(dict.fromkeys(name for found in entries for name in found.scores))
    rivals = [e for name in RIVALS for e in entries if e.method == name]
    titles = [
        "method",
        "metric",
        "learning_rate",
        "at_edge",
        "learning_rates",
        "own",
        "adapted_with",
        "seeds",
        "diverged",
    ]
    titles += ["nonfinite", "validation"]
    titles += [f"{n}/{of}" for n in [*names, "best_round/" + RANKED_BY] for of in ("mean", "std")]
    titles += [f"over_{r.method}/{of}" for r in rivals for of in ("mean", "won", "lost")]
    titles += ["bytes_up", "bytes_down", "seconds", "partition_hash"]
    rows = []
    for found in sorted(entries, key=_rank, reverse=True):
        row = [
            found.method,
            found.headline.metric,
            found.learning_rate,
            found.at_edge,
            sorted(found.searched),
            found.own,
            found.adapted_with,
        ]
        row += [found.seeds, found.diverged, found.nonfinite, found.validation]
        for values in [*(found.scores.get(name, []) for name in names), found.best_round]:
            row += moments(values)
        for rival in rivals:
            row += gain(found, rival) if found is not rival else ("", "", "")
        row += [found.bytes_up, found.bytes_down, found.seconds, found.partition_hash]
        rows.append(["" if isinstance(x, float) and not np.isfinite(x) else x for x in row])
    return titles, rows


def table(entries: list[Entry]) -> Table:
    """Return the leaderboard to print: without grids, best rounds and costs, to fit a terminal."""
    titles, rows = cells(entries)
    trouble = any(e.diverged or e.nonfinite for e in entries)
    left_out = ("grid", "round") if trouble else ("grid", "round", "seeds")
    shown = [i for i, title in enumerate(titles) if not any(word in title for word in left_out)]
    result = Table(
        title=f"test {entries[0].headline.title}, mean over clients",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i in shown:
        short = titles[i].removeprefix("personal/")
        result.add_column(short, justify="left" if short == "method" else "right", min_width=6)
    for row in rows:
        result.add_row(*(row[i] for i in shown))
    return result


def write(
    root: pathlib.Path,
    entries: list[Entry],
    command: str,
    config: ConfigDict,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write ``leaderboard.md``, ``.csv`` and ``.png`` to a comparison's directory.

    Args:
      root: the directory.
      entries: the methods' results.
      command: that gives them again.
      config: of the comparison.
      left_out: methods that could not take part, and why.
    """
    titles, rows = cells(entries)
    shorter = config.compare.search_rounds
    searched_at = "the last round" if shorter is None else f"round {shorter}"
    headline = entries[0].headline
    better = "" if headline.higher_is_better else "less is better, and a gain is a decrease; "
    points = "percentage points" if headline.percent else f"units of {headline.metric}"
    with (root / "leaderboard.csv").open("w", newline="", encoding="utf-8") as file:
        names, values = numbers(entries)
        csv.writer(file).writerows([names, *([cell(value) for value in row] for row in values)])
    lines = [
        f"# {config.dataset.name}: {config.rounds} rounds, cohort "
        f"{config.cohort_size or 'of all clients'}",
        "",
        f"    {command}",
        "",
        f"Test {headline.title}, mean over clients, after the last round; {better}± is the "
        "standard deviation "
        f'over {max(e.seeds for e in entries)} seeds. "At the best round" is personal/adapted of '
        "the evaluated round that did best on validation, seed by seed. Step sizes were chosen by "
        f"{headline.key('validation')} of {searched_at} with seed 0; † lies at the edge of its "
        f"grid. Gains are paired differences of personal/adapted, client by client, in {points}, "
        "with clients won and lost. "
        f"Partition {entries[0].partition_hash[:16]}.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"{method} was left out: {reason}." for method, reason in (left_out or {}).items()),
        *(f"{name} was not compared." for name in missing_rivals(entries)),
    ]
    files.write_text(root / "leaderboard.md", "\n".join(lines))
    plots.save_figure(chart(entries), root / "leaderboard.png")


def chart(entries: list[Entry]) -> Figure:
    """Draw mean and worst decile of the adapted models, with the standard deviation over seeds."""
    # Charts grow upwards: the best is drawn last and stands on top.
    ranked = sorted(entries, key=_rank)
    figure = plots.new_figure((7, 0.32 * len(ranked) + 1.2))
    axes = figure.subplots()
    for name, colour, label in (
        (RANKED_BY, "#0072B2", "mean over clients"),
        ("personal/adapted/worst_decile", "#D55E00", "worst decile of clients"),
    ):
        values = [e.scores.get(name, []) for e in ranked]
        centre = [float(np.mean(v)) if v else np.nan for v in values]
        spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(centre, range(len(ranked)), xerr=spread, fmt="o", color=colour, label=label,
                      capsize=2)  # fmt: skip
    axes.set_yticks(range(len(ranked)), [e.method for e in ranked])
    headline = entries[0].headline
    axes.set(xlabel=f"{headline.metric}/test/personal/adapted, in %" if headline.percent
             else f"{headline.metric}/test/personal/adapted")  # fmt: skip
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure
