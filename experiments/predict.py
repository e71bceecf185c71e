"""Predict and score new data with a model of a finished or interrupted run.

python -m experiments.predict --run=DIR --data=FILE [--client=NAME] [--which=best] [--out=FILE]
    [--modules=my_module]

FILE is npz with ``x``, features as the run's dataset stores them, and, to be scored, ``y``; or csv
or parquet with the columns that the run was trained on, in any order, and, to be scored, the column
of labels. Labels are those of the run's own data, names or numbers. The model is the one that the
client starts a round with, or without --client the global one. --out gets the predicted classes and
their probabilities, or predicted numbers, as csv or npz.

"""

import collections
import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pflalign_jax.cli.command import refuse_arguments, run_command
from pflalign_jax.cli.devices import check_devices, use_devices
from pflalign_jax.cli.own_modules import MODULES
from pflalign_jax.datasets.array_files import ArrayFileError, open_npz
from pflalign_jax.datasets.loaders.labels import WITHOUT_CLASSES, targets
from pflalign_jax.datasets.loaders.table_files import Table, ending, read_table
from pflalign_jax.datasets.values import (
    finite_numbers,
    held_by,
    numbers_or_names,
    refuse_missing,
)
from pflalign_jax.errors import UserError
from pflalign_jax.models.base import IGNORED
from pflalign_jax.runs import Run, load
from pflalign_jax.runs.csv_cells import cell
from pflalign_jax.tasks import Task

_RUN = flags.DEFINE_string("run", None, "The run's directory.", required=True)
_DATA = flags.DEFINE_string(
    "data", None, "npz with x and perhaps y, or csv or parquet.", required=True
)
_CLIENT = flags.DEFINE_string("client", None, "Name of the client; without it the global model.")
_WHICH = flags.DEFINE_string("which", "last", "last, best (on validation), or a round.")
_OUT = flags.DEFINE_string("out", None, "Where predictions go, csv or npz.")


class DataError(UserError, ValueError):
    """Data that cannot be predicted; the message names the file and says what to do."""


def read_examples(path: pathlib.Path, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ``x`` and ``y`` (or None) of a file, ``y`` as `score` takes it.

    Raises:
      DataError, DatasetError: if it cannot be read or does not go with the run.
    """
    x, y = read_npz(path) if ending(path) is None else _of_table(read_table(path), run)
    return x, None if y is None else labels_of(y, run.task, run.class_names, f"--data={path}")


def read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ``x`` and ``y`` (or None) of an npz file.

    Raises:
      DataError: if it cannot be read, has no ``x``, or as many labels as examples.
    """
    try:
        with open_npz(path) as file:
            arrays = dict(file)
    except ArrayFileError as error:
        raise DataError(
            f"--data={path} cannot be read ({type(error).__name__}: {error}); it must be an npz "
            "file with an array x and perhaps y, without Python objects, or csv or parquet"
        ) from error
    if "x" not in arrays:
        raise DataError(f"--data={path} has no array x, only {sorted(arrays)}")
    x, y = arrays["x"], arrays.get("y")
    if y is not None and (y.shape[:1] != x.shape[:1] or y.dtype.kind not in "iufbUS"):
        raise DataError(
            f"--data={path}: y is {y.dtype}{list(y.shape)}, x has {len(x)} examples; y must be one "
            "label or number for each"
        )
    return x, y


def _of_table(table: Table, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features and labels (None without their columns) of a table."""
    fields, shape = run.config["dataset"], run.features_shape
    label = fields.get("label") or next((n for n in ("label", "y") if n in table.columns), "label")
    labels = [label] if isinstance(label, str) else list(label)
    features = run.feature_names
    if features is None:
        others = (fields.get("client_column") or "client", fields.get("split_column"))
        ignored = {*labels, *others, *(fields.get("ignore") or ())}
        features = tuple(name for name in table.columns if name not in ignored)
    missing = [name for name in features if name not in table.columns]
    if missing or len(features) != math.prod(shape):
        has = f"no column {missing[0]!r}" if missing else f"{len(features)} columns of features"
        wanted = f"the columns {list(features)}" if missing else f"examples {list(shape)}"
        raise DataError(
            f"--data={table.file} has {has}; there are {list(table.columns)}, and the run was "
            f"trained on {wanted}"
        )
    columns = [
        finite_numbers(table.columns[name], f"{table.file}: column {name!r}", table.place)
        for name in features
    ]
    x = np.stack(columns, axis=1).reshape(-1, *shape)
    if not set(labels) <= set(table.columns):
        return x, None
    y = np.stack([table.columns[name].astype(str) for name in labels], axis=1)
    return x, y if len(labels) > 1 else y[:, 0]


def labels_of(
    y: np.ndarray, task: Task, class_names: Sequence[str] | None, where: str
) -> np.ndarray:
    """Return labels as numbers: names become the positions of their classes.

    Args:
      y: ``[N, ...]`` as a file has them.
      task: of the run.
      class_names: of the run. Numbers are names if all of them are: a run that was trained on the
        labels 3 and 7 calls them so. Else they are positions.
      where: the file, for messages.

    Raises:
      DataError: for a name that is no class.
      DatasetError: for a missing label, or a text where numbers are needed.

    >>> from pflalign_jax.tasks import classification
    >>> labels_of(np.array(["dog", "cat"]), classification(), ("cat", "dog"), "pets.csv").tolist()
    [1, 0]
    """
    if task.name in WITHOUT_CLASSES:
        return targets(y, where, task.name).y if y.dtype.kind in "US" else y
    if y.ndim != 1:
        return y
    refuse_missing(where, y, "label")
    found = numbers_or_names(y, where)
    texts, names = found.astype(str), class_names or ()
    unknown = ~np.isin(texts, names)
    if not unknown.any():
        position = {name: i for i, name in enumerate(names)}
        return np.array([position[text] for text in texts.tolist()], np.int32)
    are_words = not names or numbers_or_names(np.array(names), where).dtype.kind == "U"
    if found.dtype.kind != "U" and are_words:
        return found  # positions; `score` refuses those that are none
    known = f"they are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    raise DataError(
        f"{where} has the label {str(texts[unknown][0])!r}, which is no class of the run; "
        f"{known if names else 'its classes have no names, only the numbers 0, 1, ...'}"
    )


CLASSES = ("classification", "next_token")
"""Tasks whose labels are one of several classes."""

MOST_COUNTED = 5
"""Classes that are printed with how often they were predicted."""


def score(task: Task, outputs: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return the values of a task's metrics, NaN for one that has none on these examples.

    Raises:
      DataError: for ``y`` that do not fit the task or the model.
    """
    y = _checked(task, outputs, y)
    mask, examples = jnp.ones(len(y)), np.array([float(len(y))])
    values = {}
    for metric in task.metrics:
        statistics = metric.statistics(jnp.asarray(outputs), jnp.asarray(y), mask)
        rows = jax.tree.map(lambda a: np.asarray(a, np.float64)[None], statistics)
        with np.errstate(divide="ignore", invalid="ignore"):
            values[metric.name] = float(metric.value(rows, examples)[0])
    return values


def _checked(task: Task, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``y`` as the task's metrics take it, int32 or float32."""
    numbers, classes = task.name == "regression", outputs.shape[-1]
    if task.name in CLASSES:
        needed, fits = f"labels in 0..{classes - 1}", y.shape == outputs.shape[:-1]
    else:
        needed, fits = "numbers" if numbers else "0 or 1", y.size == outputs.size
        classes = 2
    if numbers:
        right = y.dtype.kind in "iuf" and bool(np.isfinite(y).all())
    else:
        least = IGNORED if task.name == "next_token" else 0
        right = y.dtype.kind in "iub" and not (y.size and (y.min() < least or y.max() >= classes))
    if not (fits and right):
        raise DataError(
            f"y of type {y.dtype} and shape {list(y.shape)} must be {needed} for task "
            f"{task.name!r}; the model's outputs are {list(outputs.shape)}"
        )
    return held_by(y, np.float32 if numbers else np.int32, "y")


def predictions(
    task: Task, outputs: np.ndarray, class_names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return what ``--out`` gets as npz.

    ``predicted`` labels or numbers; of labels their ``probabilities`` (of two labels that of the
    second), and ``class_names``, if they are known: of the label 3 it is ``class_names[3]``.
    """
    given = jnp.asarray(outputs)
    predicted = np.asarray(task.predict(given))
    if task.name == "regression":
        return {"predicted": predicted}
    probabilities = predicted
    if task.name in CLASSES:
        probabilities = np.asarray(jax.nn.softmax(given))
    else:
        predicted = (probabilities > 0.5).astype(np.int32)
    names = {} if class_names is None else {"class_names": np.array(class_names)}
    return {"predicted": predicted, "probabilities": probabilities, **names}


def table_of(task: Task, arrays: dict[str, np.ndarray], labels: Sequence[str]) -> dict[str, Any]:
    """Return what ``--out`` gets as csv: ``{column: [N] values}``.

    Args:
      task: of the run.
      arrays: from `predictions`.
      labels: names of the columns of several numbers; empty: they have none.
    """
    predicted, named = arrays["predicted"], "class_names" in arrays
    if task.name == "regression":
        several = [f"_{n}" for n in labels or range(predicted.shape[1])]
        columns = several if predicted.shape[1] > 1 else [""]
        return {f"predicted{name}": predicted[:, j] for j, name in enumerate(columns)}
    probabilities = arrays["probabilities"]
    count = 2 if probabilities.ndim == 1 else probabilities.shape[1]
    names = arrays["class_names"].tolist() if named else list(map(str, range(count)))
    if task.name == "multilabel":
        found = {f"predicted_{name}": predicted[:, j] for j, name in enumerate(names)}
        return found | {f"probability_{n}": probabilities[:, j] for j, n in enumerate(names)}
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    called = np.array(names)[predicted] if named else predicted
    return {
        "predicted": called,
        **{f"probability_{name}": probabilities[:, j] for j, name in enumerate(names)},
    }


def write_csv(path: pathlib.Path, columns: dict[str, Any]) -> None:
    """Write columns to a csv file; texts are no formulas to spreadsheets."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, columns))
        values = [np.asarray(column).tolist() for column in columns.values()]
        writer.writerows(map(cell, row) for row in zip(*values, strict=True))


def _counted(predicted: np.ndarray, names: Sequence[str] | None) -> str:
    """Return how often each class was predicted, the most frequent first."""
    counts = collections.Counter(predicted.tolist()).most_common()
    shown = [
        f"{label if names is None else names[label]} {n}" for label, n in counts[:MOST_COUNTED]
    ]
    more = f" and {len(counts) - MOST_COUNTED} more" if len(counts) > MOST_COUNTED else ""
    return f"predicted: {', '.join(shown)}{more}"


def main(arguments: list[str]) -> None:
    """Predict ``--data`` with the model of ``--client`` in ``--run``."""
    refuse_arguments(arguments)
    # One model predicts: more simulated devices are of no use.
    use_devices(1)
    # A number is a round.
    which = int(_WHICH.value) if _WHICH.value.isdigit() else _WHICH.value
    out = None if _OUT.value is None else pathlib.Path(_OUT.value)
    if out is not None and out.suffix not in (".csv", ".npz"):
        raise DataError(f"--out={out} is of an unknown kind; its name must end with .csv or .npz")
    check_devices()
    run = load(_RUN.value, which, MODULES.value)
    x, y = read_examples(pathlib.Path(_DATA.value), run)
    outputs = run.predict(x, _CLIENT.value)
    scores = {} if y is None or not len(y) else score(run.task, outputs, y)
    whose = "the global model" if _CLIENT.value is None else f"client {_CLIENT.value}"
    print(f"{len(x)} examples, {whose} after round {run.round}")
    if scores:
        percent = {metric.name for metric in run.task.metrics if metric.percent}
        texts = (
            f"{name} {100 * value:.2f} %" if name in percent else f"{name} {value:.4f}"
            for name, value in scores.items()
        )
        print(", ".join(texts))
    arrays = predictions(run.task, outputs, run.class_names)
    if run.task.name in ("classification", "binary") and arrays["predicted"].ndim == 1:
        print(_counted(arrays["predicted"], run.class_names))
    if out is not None:
        write(out, run, arrays)
        print(f"Predictions: {out}")


def write(out: pathlib.Path, run: Run, arrays: dict[str, np.ndarray]) -> None:
    """Write predictions as csv or npz."""
    sequences = run.task.name in CLASSES and arrays["predicted"].ndim > 1
    if out.suffix == ".csv" and sequences:
        raise DataError(f"--out={out}: sequences do not fit into a table; let it end with .npz")
    try:
        if out.suffix == ".csv":
            label = run.config["dataset"].get("label") or ()
            targets_of = () if isinstance(label, str) else tuple(label)
            write_csv(out, table_of(run.task, arrays, targets_of))
            return
        with out.open("wb") as file:
            named: dict[str, Any] = dict(arrays)
            np.savez_compressed(file, **named)
    except OSError as error:
        raise DataError(f"--out={out} cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    run_command(main)
