"""The rows that rounds append to the files of a run's directory, and how they are read back.

They are of ``metrics.jsonl``, ``clients.csv``, ``diagnostics.jsonl`` and ``nodes.jsonl``; all files
are listed in `pflalign_jax.runs.files`. What a checkpoint remembers of them is in
`pflalign_jax.runs.growing_files`.
"""

import collections
import csv
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.federated import ClientScores
from pflalign_jax.federated.metrics import no_scores
from pflalign_jax.runs import read_types
from pflalign_jax.runs.csv_cells import cell, text_of
from pflalign_jax.runs.files import (
    CLIENTS,
    DIAGNOSTICS,
    METRICS,
    NODES,
    RunError,
    named_write_errors,
    read_headline,
)
from pflalign_jax.tasks import Metric

CLIENT_COLUMNS = ("round", "client", "split", "model", "stage", "examples")
"""Columns of ``clients.csv`` before those of the task's metrics."""


def append_row(workdir: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Append an evaluated round to ``metrics.jsonl``."""
    _append_lines(workdir / METRICS, [row])


def read_rows(workdir: pathlib.Path, size: int | None = None) -> list[dict[str, float]]:
    """Return the rows of ``metrics.jsonl``; with ``size`` those in its first bytes."""
    return _read_lines(workdir / METRICS, size)


def read_merits(workdir: pathlib.Path, size: int | None = None) -> dict[int, float]:
    """Return the evaluated rounds with their validation headline, such that more is better.

    Args:
      workdir: the run's directory.
      size: bytes of ``metrics.jsonl`` that count; None: all.
    """
    headline = read_headline(workdir)
    key = headline.key("validation")
    return {
        int(row["round"]): headline.merit(row[key])
        for row in read_rows(workdir, size)
        if row.get(key) is not None
    }


def append_diagnostics(workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rounds to ``diagnostics.jsonl``."""
    _append_lines(workdir / DIAGNOSTICS, rows)


def read_diagnostics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of ``diagnostics.jsonl``; none if the run was not to write any."""
    return _read_lines(workdir / DIAGNOSTICS)


def append_nodes(workdir: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Append to ``nodes.jsonl`` who was asked in a round, and who answered."""
    _append_lines(workdir / NODES, [row])


def read_nodes(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of ``nodes.jsonl``; none if clients were simulated."""
    return _read_lines(workdir / NODES)


def append_clients(
    workdir: pathlib.Path, round_index: int, names: np.ndarray, scores: Mapping[str, ClientScores]
) -> None:
    """Append every client's scores of one round to ``clients.csv``.

    Clients without examples in a split have no row there. ``stage`` is empty for the global model.
    A metric that has no value for a client is ``nan``.
    """
    path = workdir / CLIENTS
    with named_write_errors(path), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for name, score in scores.items():
            if file.tell() == 0:
                writer.writerow((*CLIENT_COLUMNS, *score.values))
            # The global model has no stage.
            split, model, stage = (*name.split("/"), "")[:3]
            for k in score.examples.nonzero()[0]:
                writer.writerow(
                    (round_index, cell(str(names[k])), split, model, stage, score.examples[k],
                     *(f"{values[k]:.6g}" for values in score.values.values()))
                )  # fmt: skip


class ClientRow(NamedTuple):
    """A row of ``clients.csv``.

    Attributes:
      round, client, examples: as there.
      score: ``split/model[/stage]``.
      values: metric name to the client's value, NaN where it has none.
    """

    round: int
    client: str
    score: str
    examples: int
    values: Mapping[str, float]


def read_clients(
    workdir: pathlib.Path, score: str | None = None, round_index: int | None = None
) -> Iterator[ClientRow]:
    """Yield the rows of ``clients.csv``, all or those of one score and of one round."""
    path = workdir / CLIENTS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name = "/".join(filter(None, (row["split"], row["model"], row["stage"])))
                if score not in (None, name) or round_index not in (None, int(row["round"])):
                    continue
                values = {k: float(v) for k, v in row.items() if k not in CLIENT_COLUMNS}
                yield ClientRow(
                    int(row["round"]), text_of(row["client"]), name, int(row["examples"]), values
                )
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def last_scores(workdir: pathlib.Path, score: str) -> dict[str, ClientRow]:
    """Return every client's row of one score in the last evaluated round that has it."""
    found: dict[str, ClientRow] = {}
    last = None
    for row in read_clients(workdir, score):
        if row.round != last:
            found, last = {}, row.round
        found[row.client] = row
    return found


def read_scores(
    workdir: pathlib.Path, round_index: int, names: np.ndarray, metrics: tuple[Metric, ...]
) -> dict[str, ClientScores]:
    """Return what `append_clients` wrote of one round, to the digits that it wrote.

    Args:
      workdir: the run's directory.
      round_index: the round.
      names: ``[K]`` clients, in the order of the scores to return; rows of others are left out.
      metrics: of the run's task.
    """
    position = {name: k for k, name in enumerate(names.tolist())}
    scores: dict[str, ClientScores] = collections.defaultdict(
        lambda: no_scores(len(names), metrics)
    )
    for row in read_clients(workdir, round_index=round_index):
        if row.client not in position:
            continue
        k = position[row.client]
        score = scores[row.score]
        score.examples[k] = row.examples
        for metric in metrics:
            score.values[metric.name][k] = row.values[metric.name]
    return dict(scores)


def _append_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines of json and push them to disk."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with named_write_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: pathlib.Path, size: int | None = None) -> list[dict[str, Any]]:
    """Return lines of json; none if the file is missing."""
    if not path.exists():
        return []
    rows = []
    try:
        for line in path.read_bytes()[:size].splitlines():
            row = read_types.object_of(line)
            read_types.check_fields(row, read_types.ROW, required=True)
            rows.append(row)
    except OSError as error:
        raise _unreadable(path, error) from error
    except read_types.ReadError as error:
        raise _unreadable(path, f"line {len(rows) + 1}: {error}") from error
    return rows


def _unreadable(path: pathlib.Path, error: Exception | str) -> RunError:
    said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return RunError(
        f"{path} cannot be read ({said}); an interrupted run mends its files when it goes on"
    )
