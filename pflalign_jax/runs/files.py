"""The files of a run, written so that a killed run loses nothing already measured."""

import contextlib
import csv
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import ClientScores

FILES = ("config.json", "metrics.jsonl", "clients.csv", "partition.npz", "summary.json")
GROWING = ("metrics.jsonl", "clients.csv", "diagnostics.jsonl")
"""Files that rounds append to."""
CLIENT_COLUMNS = ("round", "client", "split", "model", "stage", "examples", "accuracy", "loss")


class WorkdirError(Exception):
    """A workdir that cannot be used; the message names it and says what to do."""


def create(path: str | os.PathLike, go_on: bool = False) -> pathlib.Path:
    """Create a run's directory.

    Args:
      path: its name.
      go_on: whether it may hold an unfinished run.

    Raises:
      WorkdirError: if it holds a run already, or cannot be written.
    """
    path = pathlib.Path(path)
    held = [name for name in FILES if (path / name).exists()]
    if held and not (go_on and "summary.json" not in held):
        state = "a finished run" if "summary.json" in held else "an unfinished run"
        raise WorkdirError(
            f"workdir {path} holds {state} ({', '.join(held)}); it is not overwritten. "
            "Choose another --workdir, or move or delete that directory"
        )
    try:
        (path / "plots").mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WorkdirError(
            f"workdir {path} cannot be written: {error.strerror or error}; "
            "choose another --workdir or change its permissions"
        ) from error
    return path


def describe_run(workdir: pathlib.Path, config: ConfigDict, dataset: FederatedDataset) -> None:
    """Write what the run is: ``config.json``, ``partition.npz``, ``data.json``."""
    write_json(workdir / "config.json", config.to_dict())
    with explained(workdir / "partition.npz"):
        datasets.save_partition(workdir / "partition.npz", dataset)
    write_json(workdir / "data.json", describe_data(dataset))


def describe_data(dataset: FederatedDataset) -> dict[str, Any]:
    """Return what ``data.json`` holds: what models need of the data, and what tells data apart.

    ``features_crc32`` is over some 4,000 examples, evenly spread; ``label_counts`` has a row for
    every client, over all splits.
    """
    some = np.ascontiguousarray(dataset.x[:: max(1, len(dataset.x) // 4096)])
    return {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "features_shape": list(dataset.x.shape[1:]),
        "features_dtype": str(dataset.x.dtype),
        "mean": np.asarray(dataset.mean, np.float64).tolist(),
        "std": np.asarray(dataset.std, np.float64).tolist(),
        "client_names": dataset.client_names.tolist(),
        "client_ids": dataset.client_ids.tolist(),
        "partition_hash": datasets.partition_hash(dataset),
        "label_counts": datasets.label_counts(dataset).tolist(),
        "features_crc32": zlib.crc32(some.tobytes()),
    }


def write_json(path: pathlib.Path, value: Mapping) -> None:
    """Write a json file whole."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file whole: to a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".partial")
    with explained(path):
        temporary.write_text(text)
        temporary.replace(path)


def append_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines of json and push them to disk."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with explained(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def append_clients(
    workdir: pathlib.Path, round_index: int, names: np.ndarray, scores: Mapping[str, ClientScores]
) -> None:
    """Append every client's scores of one round to ``clients.csv``.

    Clients without examples in a split have no row there. ``stage`` is empty for the global model.
    """
    path = workdir / "clients.csv"
    with explained(path), path.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(CLIENT_COLUMNS)
        for name, score in scores.items():
            split, model, stage = (*name.split("/"), "")[:3]
            for k in score.examples.nonzero()[0]:
                writer.writerow(
                    (round_index, names[k], split, model, stage, score.examples[k],
                     f"{score.accuracy[k]:.6g}", f"{score.loss[k]:.6g}")
                )  # fmt: skip


def read_clients(
    workdir: pathlib.Path, round_index: int, names: np.ndarray
) -> dict[str, ClientScores]:
    """Return what `append_clients` wrote of one round, to the digits that it wrote."""
    position = {name: k for k, name in enumerate(names.tolist())}
    scores: dict[str, ClientScores] = {}
    with (workdir / "clients.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["round"] != str(round_index) or row["client"] not in position:
                continue
            name = "/".join(filter(None, (row["split"], row["model"], row["stage"])))
            unknown = np.full(len(names), np.nan)
            score = scores.setdefault(
                name, ClientScores(np.zeros(len(names), np.int64), unknown, unknown.copy())
            )
            for values, column in zip(score, ("examples", "accuracy", "loss"), strict=True):
                values[position[row["client"]]] = row[column]
    return scores


def read_rows(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Return the rows of ``metrics.jsonl``."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sizes(workdir: pathlib.Path) -> dict[str, int]:
    """Push what was appended to disk; return the bytes of each growing file."""
    found = {}
    for name in GROWING:
        path = workdir / name
        if path.exists():
            with explained(path), path.open("rb+") as file:
                os.fsync(file.fileno())
        found[name] = path.stat().st_size if path.exists() else 0
    return found


def cut(workdir: pathlib.Path, to: Mapping[str, int]) -> None:
    """Take back what was appended after `sizes` was called: whole lines or parts of one.

    Raises:
      WorkdirError: naming a file that is shorter, before any is changed.
    """
    for name, size in to.items():
        path = workdir / name
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise WorkdirError(
                f"{path} has {found} bytes, {size} when the checkpoint was saved; it was changed "
                "since. Put it back, or choose another --workdir"
            )
    for name, size in to.items():
        if (workdir / name).exists():
            with explained(workdir / name):
                os.truncate(workdir / name, size)


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Turn what the operating system refuses into a `WorkdirError`."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(
            f"{path} cannot be written: {error.strerror or error}. Make room or change "
            f"permissions; the same command with --workdir={path.parent} goes on from the last "
            "checkpoint"
        ) from error
