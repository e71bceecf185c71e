"""The files of a run, written so that a killed run loses nothing already measured."""

import csv
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pflalign_jax.federated import ClientScores

FILES = ("config.json", "metrics.jsonl", "clients.csv", "partition.npz", "summary.json")
CLIENT_COLUMNS = ("round", "client", "split", "model", "stage", "examples", "accuracy", "loss")


class WorkdirError(Exception):
    """A workdir that cannot be used; the message names it and says what to do."""


def create(path: str | os.PathLike) -> pathlib.Path:
    """Create a run's directory.

    Raises:
      WorkdirError: if it holds a run already, or cannot be written.
    """
    path = pathlib.Path(path)
    held = [name for name in FILES if (path / name).exists()]
    if held:
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


def write_json(path: pathlib.Path, value: Mapping) -> None:
    """Write a json file whole: to a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def append_line(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Append a line of json and push it to disk."""
    with path.open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def append_clients(
    workdir: pathlib.Path, round_index: int, names, scores: Mapping[str, ClientScores]
) -> None:
    """Append every client's scores of one round to ``clients.csv``.

    Clients without examples in a split have no row there. ``stage`` is empty for the global model.
    """
    path = workdir / "clients.csv"
    with path.open("a", newline="") as file:
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
