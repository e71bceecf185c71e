"""Fashion-MNIST from idx files or through TFDS."""

import os
import pathlib

import numpy as np

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.idx import read_idx

DEBIAN_DIRECTORY = pathlib.Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the four files."""


def load_fashion_mnist(path: str | os.PathLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read Fashion-MNIST, its train and test sets one after the other.

    Args:
      path: directory with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same
        for ``t10k``, each with or without ``.gz``. None: `DEBIAN_DIRECTORY` if it exists, else
        TFDS, which downloads where the network allows.

    Returns:
      ``x`` uint8 ``[70000, 28, 28, 1]`` and ``y`` int32 ``[70000]`` for the complete files.

    Raises:
      DatasetError: naming the file that is missing or damaged, or all sources tried.

    References:
      Xiao, Rasul and Vollgraf, arXiv:1708.07747. MIT licence.
    """
    if path is None and not DEBIAN_DIRECTORY.is_dir():
        return _from_tfds()
    directory = DEBIAN_DIRECTORY if path is None else pathlib.Path(path)
    if not directory.is_dir():
        raise DatasetError(f"fashion_mnist: {directory} is not a directory; {_sources()}")
    xs, ys = [], []
    for part in ("train", "t10k"):
        images = read_idx(_find(directory, f"{part}-images-idx3-ubyte"))
        labels = read_idx(_find(directory, f"{part}-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DatasetError(
                f"fashion_mnist: {directory} has {part} images of shape {images.shape} and labels "
                f"of shape {labels.shape}; they do not belong together"
            )
        xs.append(images[..., None])
        ys.append(labels.astype(np.int32))
    return np.concatenate(xs), np.concatenate(ys)


def _find(directory, name):
    for candidate in (directory / f"{name}.gz", directory / name):
        if candidate.is_file():
            return candidate
    raise DatasetError(f"fashion_mnist: neither {name} nor {name}.gz is in {directory}")


def _from_tfds():
    """Read both splits through TFDS's data sources, which need no TensorFlow once prepared."""
    try:
        import tensorflow_datasets as tfds

        sources = tfds.data_source("fashion_mnist", split=["train", "test"])
    except Exception as error:
        raise DatasetError(
            f"fashion_mnist: {DEBIAN_DIRECTORY} does not exist, and TFDS could not provide it "
            f"({type(error).__name__}: {error}); {_sources()}"
        ) from error
    examples = [example for source in sources for example in source]
    x = np.stack([example["image"] for example in examples])
    return x, np.asarray([example["label"] for example in examples], np.int32)


def _sources():
    return (
        "on Debian `apt-get install dataset-fashion-mnist`; elsewhere "
        "`pip install 'pflalign-jax[tensorflow]'` lets TFDS download and prepare it; or pass "
        "dataset.path, a directory with the four idx files"
    )
