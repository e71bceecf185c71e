"""Predict and score new data with a model of a finished or interrupted run.

python -m experiments.predict --run=DIR --data=FILE.npz [--client=NAME] [--which=best] [--out=FILE]

FILE.npz has ``x``, features as the run's dataset stores them, and, to be scored, ``y``, labels. The
model is the one that the client starts a round with, or without --client the global one. --out gets
``predicted`` labels and ``probabilities``, as npz.

"""

import pathlib
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pflalign_jax.cli.command import refuse_arguments, run_command
from pflalign_jax.cli.devices import check_devices, use_devices
from pflalign_jax.errors import UserError
from pflalign_jax.models import example_hits, example_losses
from pflalign_jax.runs import load

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
        # np.load itself leaves a file that it cannot read open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise DataError(
            f"--data={path} cannot be read ({type(error).__name__}: {error}); it must be an npz "
            "file with an array x and perhaps y, without Python objects"
        ) from error
    if "x" not in arrays:
        raise DataError(f"--data={path} has no array x, only {sorted(arrays)}")
    x, y = arrays["x"], arrays.get("y")
    if y is not None and (len(y) != len(x) or y.dtype.kind not in "iu"):
        raise DataError(
            f"--data={path}: y is {y.dtype}{list(y.shape)}, x has {len(x)} examples; y must be one "
            "integer label for each"
        )
    return x, y


def score(logits: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return accuracy in [0, 1] and mean cross-entropy in nats.

    Raises:
      DataError: for labels that the model does not know.
    """
    classes = logits.shape[-1]
    if y.shape != logits.shape[:-1] or (len(y) and (y.min() < 0 or y.max() >= classes)):
        raise DataError(
            f"y of shape {list(y.shape)} must be labels in 0..{classes - 1} of shape "
            f"{list(logits.shape[:-1])}"
        )
    given, labels = jnp.asarray(logits), jnp.asarray(y, jnp.int32)
    return float(example_hits(given, labels).mean()), float(example_losses(given, labels).mean())


def main(arguments: list[str]) -> None:
    """Predict ``--data`` with the model of ``--client`` in ``--run``."""
    refuse_arguments(arguments)
    # One model predicts: more simulated devices are of no use.
    use_devices(1)
    # A number is a round.
    which = int(_WHICH.value) if _WHICH.value.isdigit() else _WHICH.value
    check_devices()
    x, y = read_examples(pathlib.Path(_DATA.value))
    run = load(_RUN.value, which)
    logits = run.predict(x, _CLIENT.value)
    scores = None if y is None or not len(y) else score(logits, y)
    whose = "the global model" if _CLIENT.value is None else f"client {_CLIENT.value}"
    print(f"{len(x)} examples, {whose} after round {run.round}")
    if scores is not None:
        print(f"accuracy {100 * scores[0]:.2f} %, loss {scores[1]:.4f}")
    if _OUT.value:
        with pathlib.Path(_OUT.value).open("wb") as file:
            probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
            np.savez_compressed(file, predicted=logits.argmax(-1), probabilities=probabilities)
        print(f"Predictions: {_OUT.value}")


if __name__ == "__main__":
    run_command(main)
