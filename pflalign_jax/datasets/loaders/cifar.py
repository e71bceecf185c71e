"""CIFAR-10 and CIFAR-100 from their binary versions; the pickled ones are never opened."""

import pathlib
import tarfile
import zlib

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, fetch

CITATION = (
    "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009"
)

CIFAR10 = Source(
    name="cifar10",
    title="Photographs of ten kinds of things, 32x32 RGB",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="not stated",
    citation=CITATION,
    files=(
        File(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            170,
        ),
    ),
    counts={"train": 50_000, "test": 10_000},
    classes=10,
)

CIFAR100 = Source(
    name="cifar100",
    title="Photographs of 100 kinds of things in 20 superclasses, 32x32 RGB",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="not stated",
    citation=CITATION,
    files=(
        File(
            "cifar-100-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            169,
        ),
    ),
    counts={"train": 50_000, "test": 10_000},
    classes=100,
)

SUPERCLASSES = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture insects large_carnivores "
    "large_man-made_outdoor_things large_natural_outdoor_scenes "
    "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people "
    "reptiles small_mammals trees vehicles_1 vehicles_2"
).split()
"""CIFAR-100's coarse labels 0..19."""


def load_cifar10(path: str | None = None) -> Examples:
    """Read CIFAR-10.

    Args:
      path: ``cifar-10-binary.tar.gz``, a directory with it, or the unpacked
        ``cifar-10-batches-bin`` or the directory above it; None: `fetch`.

    Raises:
      DatasetError: naming the file that is missing or damaged.
    """
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    records, split, where = _records(CIFAR10, path, "cifar-10-batches-bin", files, 1)
    return _examples(CIFAR10, records, 1, records[:, 0], split, where)


def load_cifar100(path: str | None = None, labels: str = "fine") -> Examples:
    """Read CIFAR-100; an example's owner is its superclass, the natural coarse partition.

    Args:
      path: ``cifar-100-binary.tar.gz``, a directory with it, or the unpacked ``cifar-100-binary``
        or the directory above it; None: `fetch`.
      labels: ``"fine"`` (100), or ``"coarse"`` (20), which then have no owner.

    Raises:
      DatasetError: naming the argument, or the file that is missing or damaged.
    """
    if labels not in ("fine", "coarse"):
        raise DatasetError(f"cifar100: labels={labels!r} is unknown; choose 'fine' or 'coarse'")
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    records, split, where = _records(CIFAR100, path, "cifar-100-binary", files, 2)
    if labels == "coarse":
        source = CIFAR100._replace(classes=20)
        return _examples(source, records, 2, records[:, 0], split, where)
    if records[:, 0].max() >= len(SUPERCLASSES):
        raise DatasetError(f"cifar100: {where} has coarse label {records[:, 0].max()}, above 19")
    owner = np.array(SUPERCLASSES)[records[:, 0]]
    return _examples(CIFAR100, records, 2, records[:, 1], split, where)._replace(owner=owner)


def _examples(source, records, num_labels, labels, split, where):
    if labels.max() >= source.classes:
        raise DatasetError(
            f"{source.name}: {where} has label {labels.max()}, above {source.classes - 1}; it is "
            "damaged, or another dataset"
        )
    planes = records[:, num_labels:].reshape(-1, 3, 32, 32)
    x = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    examples = Examples(source.name, x, labels.astype(np.int32), source.classes, split=split)
    return checked_counts(source, examples, where)


def _records(source, path, folder, files, num_labels):
    """Return uint8 records ``[N, labels + 3072]``, their split, and where they were read."""
    archive = source.files[0]
    place = fetch(source) if path is None else pathlib.Path(path)
    if place.is_dir():
        unpacked = next(
            (d for d in (place, place / folder) if (d / files["test"][0]).is_file()), None
        )
        if unpacked is None and not (place / archive.name).is_file():
            pickled = any(place.rglob("data_batch_1")) or any(place.rglob("meta"))
            hint = "; these are pickled files, which are never opened" if pickled else ""
            raise DatasetError(
                f"{source.name}: {place} has neither {archive.name} nor {files['test'][0]}{hint}. "
                f"Get the binary version from {archive.url}"
            )
        place = place / archive.name if unpacked is None else unpacked
    blocks, splits = [], []
    for split, names in files.items():
        for name in names:
            raw = _read(source, place, folder, name)
            size = num_labels + 3072
            if not len(raw) or len(raw) % size:
                raise DatasetError(
                    f"{source.name}: {name} in {place} has {len(raw)} bytes, not a multiple of "
                    f"{size}; it is truncated or damaged, fetch it again from {archive.url}"
                )
            blocks.append(np.frombuffer(raw, np.uint8).reshape(-1, size))
            splits += [split] * len(blocks[-1])
    return np.concatenate(blocks), np.array(splits), place


def _read(source, place, folder, name):
    try:
        if place.is_dir():
            return (place / name).read_bytes()
        with tarfile.open(place) as archive:
            return archive.extractfile(f"{folder}/{name}").read()
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(
            f"{source.name}: {name} cannot be read from {place} ({error}); fetch it again from "
            f"{source.files[0].url}"
        ) from error
