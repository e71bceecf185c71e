"""Read what runs and comparisons have written, for a report."""

import csv
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.runs import files
from pflalign_jax.runs.metrics import HEADLINE
from pflalign_jax.runs.resuming import leaves

SCORE = HEADLINE.format(split="test").removesuffix("/mean")
"""The score that figures show, of every client."""


class ReportError(Exception):
    """A directory that no report can be made of; the message names it and says what to do."""


class Run(NamedTuple):
    """A run that has been evaluated at least once.

    Attributes:
      name: of the method.
      path: its directory.
      config: as in ``config.json``.
      summary: as in ``summary.json``; None while it is not finished.
      rows: of ``metrics.jsonl``.
      accuracy: client to its `SCORE` after the last evaluated round, in percent.
      examples: client to its number of test examples.
      diagnostics: rows of ``diagnostics.jsonl``.
      data: as in ``data.json``.
    """

    name: str
    path: pathlib.Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    rows: list[dict[str, float]]
    accuracy: dict[str, float]
    examples: dict[str, int]
    diagnostics: list[dict[str, float]]
    data: dict[str, Any]


class Series(NamedTuple):
    """Runs that differ in their seeds only."""

    name: str
    runs: list[Run]

    @property
    def accuracy(self) -> dict[str, float]:
        """Return ``{client: SCORE in percent}``, the mean over seeds."""
        every: dict[str, list[float]] = {}
        for run in self.runs:
            for client, value in run.accuracy.items():
                every.setdefault(client, []).append(value)
        return {client: float(np.mean(values)) for client, values in every.items()}

    @property
    def partition(self) -> str:
        """Return the hash of the partition."""
        return self.runs[0].data.get("partition_hash", "")

    def last(self, key: str) -> list[float]:
        """Return a metric of the last row, one value per seed, without those that lack it."""
        values = (run.rows[-1].get(key) for run in self.runs)
        return [value for value in values if value is not None]

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(rounds [T], values [S, T])`` of a metric where all seeds were evaluated."""
        found = [{row["round"]: row.get(key) for row in run.rows} for run in self.runs]
        rounds = sorted(set.intersection(*(set(rows) for rows in found)))
        values = [[rows[done] for done in rounds] for rows in found]
        return np.array(rounds), np.array(values, float)  # None becomes NaN


def read(paths: Iterable[pathlib.Path], notes: list[str]) -> list[Series]:
    """Return the runs of directories, the best mean of `SCORE` first.

    Of a comparison it takes, for every method, the setting that was run with the most seeds, and of
    these the best on validation with the first: the one that `experiments.compare` chose.

    Args:
      paths: directories of runs and comparisons.
      notes: gets what was left out.

    Raises:
      ReportError: for a directory without any, or with files that cannot be read.
    """
    found: list[Series] = []
    for path in paths:
        if (path / "trials").is_dir():
            found += _chosen(path, notes)
        else:
            run = _read(path, None)
            if run is None:
                raise ReportError(
                    f"{path} holds neither a run (metrics.jsonl with a row) nor a comparison "
                    "(trials/); give the --workdir of experiments.run or experiments.compare"
                )
            found.append(Series(run.name, [run]))
    series: dict[tuple, list[Run]] = {}
    for each in found:
        for run in each.runs:
            series.setdefault((run.name, _setting(run)), []).append(run)
    if not series:
        raise ReportError(f"no run is finished in {', '.join(map(str, paths))}")
    named = _named([Series(name, runs) for (name, _), runs in series.items()])
    if len({each.partition for each in named}) > 1:
        notes.append("Runs have different partitions: clients of different ones are not compared.")
    key = f"{SCORE}/mean"
    return sorted(named, key=lambda each: -np.mean(each.last(key) or [0]))


def _read(path, name):
    """Return the `Run` of a directory; None if it was never evaluated."""
    try:
        rows = files.read_rows(path)
        if not rows:
            return None
        config = json.loads((path / "config.json").read_text())
        accuracy, examples = _last_accuracy(path)
        return Run(
            config["algorithm"]["name"] if name is None else name,
            path,
            config,
            _json(path / "summary.json"),
            rows,
            accuracy,
            examples,
            _lines(path / "diagnostics.jsonl"),
            _json(path / "data.json") or {},
        )
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ReportError(
            f"{path} cannot be read: {error}; an interrupted run mends its files when it goes on"
        ) from error


def _json(path):
    return json.loads(path.read_text()) if path.exists() else None


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _last_accuracy(path):
    """Return ``({client: percent}, {client: examples})`` of the last evaluated round."""
    rows: dict[str, tuple[str, str]] = {}
    last = ""
    with (path / "clients.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = f"accuracy/{row['split']}/{row['model']}/{row['stage']}"
            if name == SCORE:
                if row["round"] != last:
                    rows, last = {}, row["round"]
                rows[row["client"]] = row["accuracy"], row["examples"]
    accuracy = {client: 100 * float(value) for client, (value, _) in rows.items()}
    return accuracy, {client: int(count) for client, (_, count) in rows.items()}


def _chosen(root, notes):
    """Return one `Series` for every method of a comparison."""
    groups: dict[str, dict[tuple, list[Run]]] = {}
    for path in sorted((root / "trials").iterdir()):
        summary = _json(path / "summary.json")
        if summary is None or "diverged" in summary:
            notes.append(f"{path.name} was left out: {'diverged' if summary else 'not finished'}.")
            continue
        config = json.loads((path / "config.json").read_text())
        rate, seed = config["algorithm"]["learning_rate"], config["seed"]
        name = re.fullmatch(rf"(.+?)-{re.escape(f'{rate:g}')}(-.+)?-{seed}", path.name)
        run = _read(path, name and name[1])
        assert run is not None, path  # a finished run was evaluated
        groups.setdefault(run.name, {}).setdefault(_setting(run), []).append(run)
    key = HEADLINE.format(split="validation")

    def better(runs):
        first = min(runs, key=lambda run: run.config["seed"])
        return len(runs), first.rows[-1].get(key) or 0.0

    return [Series(name, max(found.values(), key=better)) for name, found in groups.items()]


def _setting(run):
    """Return what runs of one series have in common."""
    return tuple(sorted((k, v) for k, v in leaves(run.config).items() if k != "seed"))


def _named(series: Sequence[Series]) -> list[Series]:
    """Give series of one name names that tell them apart by the fields that differ."""
    result = []
    for each in series:
        same = [dict(_setting(other.runs[0])) for other in series if other.name == each.name]
        own = dict(_setting(each.runs[0]))
        differ = sorted(k for k in own if any(other.get(k) != own[k] for other in same))
        of = ", ".join(f"{k.removeprefix('algorithm.')}={own[k]}" for k in differ)
        result.append(each._replace(name=f"{each.name} ({of})" if of else each.name))
    return result
