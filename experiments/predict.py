"""Predict and score new data with a model of a finished or interrupted run.

python -m experiments.predict --run=DIR --data=FILE.npz [--client=NAME] [--which=best] [--out=FILE]
    [--modules=my_module]

FILE.npz has ``x``, features as the run's dataset stores them, and, to be scored, ``y``, labels or
numbers. The model is the one that the client starts a round with, or without --client the global
one. --out gets ``predicted`` labels and ``probabilities``, or ``predicted`` numbers, as npz.

"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pflalign_jax.cli.command import refuse_arguments, run_command
from pflalign_jax.cli.devices import check_devices, use_devices
from pflalign_jax.cli.own_modules import MODULES
from pflalign_jax.datasets.array_files import ArrayFileError, open_npz
from pflalign_jax.datasets.values import held_by
from pflalign_jax.errors import UserError
from pflalign_jax.models.base import IGNORED
from pflalign_jax.runs import load
from pflalign_jax.tasks import Task

_RUN = flags.DEFINE_string("run", None, "The run's directory.", required=True)
_DATA = flags.DEFINE_string("data", None, "The npz file with x and perhaps y.", required=True)
_CLIENT = flags.DEFINE_string("client", None, "Name of the client; without it the global model.")
_WHICH = flags.DEFINE_string("which", "last", "last, best (on validation), or a round.")
_OUT = flags.DEFINE_string("out", None, "Where predictions go, an npz file.")


class DataError(UserError, ValueError):
    """Data that cannot be predicted; the message names the file and says what to do."""


def read_examples(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
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
            "file with an array x and perhaps y, without Python objects"
        ) from error
    if "x" not in arrays:
        raise DataError(f"--data={path} has no array x, only {sorted(arrays)}")
    x, y = arrays["x"], arrays.get("y")
    if y is not None and (len(y) != len(x) or y.dtype.kind not in "iufb"):
        raise DataError(
            f"--data={path}: y is {y.dtype}{list(y.shape)}, x has {len(x)} examples; y must be one "
            "label or number for each"
        )
    return x, y


CLASSES = ("classification", "next_token")
"""Tasks whose labels are one of several classes."""


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


def predictions(task: Task, outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return what ``--out`` gets: ``predicted``, and ``probabilities`` of labels."""
    given = jnp.asarray(outputs)
    if task.name == "regression":
        return {"predicted": np.asarray(task.predict(given))}
    if task.name in CLASSES:
        return {
            "predicted": np.asarray(task.predict(given)),
            "probabilities": np.asarray(jax.nn.softmax(given)),
        }
    probabilities = np.asarray(task.predict(given))
    return {"predicted": (probabilities > 0.5).astype(np.int32), "probabilities": probabilities}


def main(arguments: list[str]) -> None:
    """Predict ``--data`` with the model of ``--client`` in ``--run``."""
    refuse_arguments(arguments)
    # One model predicts: more simulated devices are of no use.
    use_devices(1)
    # A number is a round.
    which = int(_WHICH.value) if _WHICH.value.isdigit() else _WHICH.value
    check_devices()
    x, y = read_examples(pathlib.Path(_DATA.value))
    run = load(_RUN.value, which, MODULES.value)
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
    if _OUT.value:
        with pathlib.Path(_OUT.value).open("wb") as file:
            arrays: dict[str, Any] = predictions(run.task, outputs)
            np.savez_compressed(file, **arrays)
        print(f"Predictions: {_OUT.value}")


if __name__ == "__main__":
    run_command(main)
