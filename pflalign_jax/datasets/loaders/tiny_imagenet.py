"""Tiny-ImageNet from its folder of JPEG files."""

import pathlib

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.images import read_pixels
from pflalign_jax.datasets.loaders.sources import Source, checked_counts, data_directory

SOURCE = Source(
    name="tiny_imagenet",
    title="200 of ImageNet's classes, 64x64 RGB",
    homepage="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    licence="ImageNet's terms: non-commercial research and education",
    citation="Le and Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, 2015",
    files=(),
    counts={"train": 100_000, "test": 10_000},
    classes=200,
)


def load_tiny_imagenet(path: str | None = None) -> Examples:
    """Read Tiny-ImageNet. Its validation set is the test set here: its test set has no labels.

    Args:
      path: the unpacked folder ``tiny-imagenet-200``, with ``wnids.txt``, ``train/`` and ``val/``;
        None: ``~/.cache/pflalign_jax/data/tiny_imagenet/tiny-imagenet-200``.

    Raises:
      DatasetError: naming the file or folder that is missing or damaged.
    """
    folder = (data_directory("tiny_imagenet") / "tiny-imagenet-200") if path is None else path
    folder = pathlib.Path(folder)
    names = _lines(folder / "wnids.txt")
    # Sorted, so that labels do not depend on the order of the file.
    labels = {name: i for i, name in enumerate(sorted(names))}
    files, y = [], []
    for name, label in labels.items():
        images = sorted((folder / "train" / name / "images").glob("*.JPEG"))
        if not images:
            raise DatasetError(f"tiny_imagenet: {folder}/train/{name}/images has no *.JPEG")
        files += images
        y += [label] * len(images)
    num_train = len(files)
    annotations = folder / "val" / "val_annotations.txt"
    for row in _lines(annotations):
        image, name = row.split("\t")[:2] if "\t" in row else (row, "")
        if name not in labels:
            raise DatasetError(
                f"tiny_imagenet: {annotations} has class {name!r} in the row {row!r}; classes are "
                "those in wnids.txt"
            )
        files.append(folder / "val" / "images" / image)
        y.append(labels[name])
    split = np.repeat(["train", "test"], [num_train, len(files) - num_train])
    # Into one array: a list of images to be stacked would take their size twice, 2.7 GB.
    x = np.zeros((len(files), 64, 64, 3), np.uint8)
    for i, file in enumerate(files):
        x[i] = _image(file)
    examples = Examples("tiny_imagenet", x, np.array(y, np.int32), len(labels), split=split)
    examples = examples._replace(class_names=tuple(labels))
    return checked_counts(SOURCE, examples, folder)


def _lines(file: pathlib.Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"tiny_imagenet: {file} cannot be read ({error}); unpack {SOURCE.homepage} and pass "
            "the folder tiny-imagenet-200 as dataset.path"
        ) from error


def _image(file: pathlib.Path) -> np.ndarray:
    """Return uint8 pixels ``[64, 64, 3]``."""
    try:
        pixels = read_pixels(file, channels=3)  # some of the images are grey
    except ValueError as error:
        raise DatasetError(f"tiny_imagenet: {file} cannot be read as an image ({error})") from error
    if pixels.shape != (64, 64, 3):
        raise DatasetError(f"tiny_imagenet: {file} has shape {pixels.shape}; it must be 64x64")
    return pixels
