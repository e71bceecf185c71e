"""CIFAR-10 and CIFAR-100 from their binary versions; the pickled ones are never opened."""

import pathlib
import tarfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, fetch

PIXELS = 3 * 32 * 32
"""Bytes of an image in a record, after its labels: the red plane, the green and the blue."""

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

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
"""What the labels of CIFAR-10 are called."""

CIFAR100_CLASSES = tuple(
    (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
        "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach "
        "couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house "
        "kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
        "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal "
        "shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper "
        "table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
        "willow_tree wolf woman worm"
    ).split()
)
"""What the fine labels of CIFAR-100 are called."""

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
        ``cifar-10-batches-bin`` or the directory above it; None:
        ``~/.cache/pflalign_jax/data/cifar10``, downloaded if it is not there.

    Raises:
      DatasetError: naming the file that is missing or damaged.
    """
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    records, split, origin = _records(CIFAR10, path, "cifar-10-batches-bin", files, 1)
    examples = _examples(CIFAR10, records, records[:, 0], split, origin)
    return examples._replace(class_names=CIFAR10_CLASSES)


def load_cifar100(path: str | None = None, labels: str = "fine") -> Examples:
    """Read CIFAR-100; an example's owner is its superclass, the natural coarse partition.

    Args:
      path: ``cifar-100-binary.tar.gz``, a directory with it, or the unpacked ``cifar-100-binary``
        or the directory above it; None: ``~/.cache/pflalign_jax/data/cifar100``, downloaded if it
        is not there.
      labels: ``"fine"``, 100 classes whose natural owners are the 20 superclasses, or ``"coarse"``,
        the 20 superclasses, without owners.

    Raises:
      DatasetError: naming the argument, or the file that is missing or damaged.
    """
    if labels not in ("fine", "coarse"):
        raise DatasetError(f"cifar100: labels={labels!r} is unknown; choose 'fine' or 'coarse'")
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    records, split, origin = _records(CIFAR100, path, "cifar-100-binary", files, 2)
    # A record begins with its coarse label, then comes the fine one.
    if labels == "coarse":
        source = CIFAR100._replace(classes=20)
        examples = _examples(source, records, records[:, 0], split, origin)
        return examples._replace(class_names=tuple(SUPERCLASSES))
    if records[:, 0].max() >= len(SUPERCLASSES):
        raise DatasetError(f"cifar100: {origin} has coarse label {records[:, 0].max()}, above 19")
    owner = np.array(SUPERCLASSES)[records[:, 0]]
    examples = _examples(CIFAR100, records, records[:, 1], split, origin)
    return examples._replace(owner=owner, class_names=CIFAR100_CLASSES)


def _examples(
    source: Source, records: np.ndarray, labels: np.ndarray, split: np.ndarray, origin: pathlib.Path
) -> Examples:
    """Return the examples of records ``[N, labels + 3072]``."""
    if labels.max() >= source.classes:
        raise DatasetError(
            f"{source.name}: {origin} has label {labels.max()}, above {source.classes - 1}; it is "
            "damaged, or another dataset"
        )
    # From planes of colour to channels last, copied once so that later slices are contiguous.
    planes = records[:, -PIXELS:].reshape(-1, 3, 32, 32)
    x = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    examples = Examples(source.name, x, labels.astype(np.int32), source.classes, split=split)
    return checked_counts(source, examples, origin)


def _records(
    source: Source,
    path: str | None,
    folder: str,
    files: Mapping[str, Sequence[str]],
    num_labels: int,
) -> tuple[np.ndarray, np.ndarray, pathlib.Path]:
    """Return uint8 records ``[N, labels + 3072]``, their split, and where they were read.

    Args:
      source: where to get them.
      path: given by the user; None: `fetch`.
      folder: name of the unpacked archive's folder.
      files: split to names of files in the folder.
      num_labels: bytes before the image in each record.
    """
    origin = _archive_or_folder(source, path, folder, files["test"][0])
    blocks, splits = [], []
    size = num_labels + PIXELS
    for split, names in files.items():
        for name in names:
            raw = _read(source, origin, folder, name)
            # The format has no header and no checksum: the size is all that can be checked.
            if not len(raw) or len(raw) % size:
                raise DatasetError(
                    f"{source.name}: {name} in {origin} has {len(raw)} bytes, not a multiple of "
                    f"{size}; it is truncated or damaged, fetch it again from {source.files[0].url}"
                )
            blocks.append(np.frombuffer(raw, np.uint8).reshape(-1, size))
            splits += [split] * len(blocks[-1])
    return np.concatenate(blocks), np.array(splits), origin


def _archive_or_folder(
    source: Source, path: str | None, folder: str, test_file: str
) -> pathlib.Path:
    """Return the archive, or the unpacked folder, at or below what the user gave."""
    archive = source.files[0]
    given = fetch(source) if path is None else pathlib.Path(path)
    if not given.is_dir():
        return given
    for unpacked in (given, given / folder):
        if (unpacked / test_file).is_file():
            return unpacked
    if (given / archive.name).is_file():
        return given / archive.name
    pickled = any(given.rglob("data_batch_1")) or any(given.rglob("meta"))
    hint = "; these are pickled files, which are never opened" if pickled else ""
    raise DatasetError(
        f"{source.name}: {given} has neither {archive.name} nor {test_file}{hint}. "
        f"Get the binary version from {archive.url}"
    )


def _read(source: Source, origin: pathlib.Path, folder: str, name: str) -> bytes:
    """Return the bytes of a file in a folder or an archive."""
    try:
        if origin.is_dir():
            return (origin / name).read_bytes()
        # Opened for each of the six files, which reads the archive up to it: seconds, but simple.
        with tarfile.open(origin) as archive:
            member = archive.extractfile(f"{folder}/{name}")
            if member is None:
                raise KeyError(f"{folder}/{name} is not a file")
            return member.read()
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(
            f"{source.name}: {name} cannot be read from {origin} ({error}); fetch it again from "
            f"{source.files[0].url}"
        ) from error
