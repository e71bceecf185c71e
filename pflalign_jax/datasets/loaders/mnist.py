"""MNIST, Fashion-MNIST and EMNIST from their idx files, and NIST digits by writer."""

import pathlib
import string
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.characters import CHARACTERS, CHARACTERS_MERGED, DIGITS
from pflalign_jax.datasets.loaders.idx import parse_idx, read_idx
from pflalign_jax.datasets.loaders.labels import mapped_labels
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, fetch, find_file

FOUR_FILES = {
    "train-images-idx3-ubyte": 9.9,
    "train-labels-idx1-ubyte": 0.03,
    "t10k-images-idx3-ubyte": 1.6,
    "t10k-labels-idx1-ubyte": 0.005,
}
"""The files of MNIST and of Fashion-MNIST, with their megabytes."""


def _four_files(base: str, checksums: Sequence[str]) -> tuple[File, ...]:
    """Return the four files below a URL, with their md5 sums."""
    return tuple(
        File(f"{name}.gz", f"{base}/{name}.gz", f"md5:{md5}", size)
        for (name, size), md5 in zip(FOUR_FILES.items(), checksums, strict=True)
    )


MNIST = Source(
    name="mnist",
    title="Handwritten digits, 28x28 grey",
    homepage="http://yann.lecun.com/exdb/mnist",
    licence="CC BY-SA 3.0",
    citation="LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document "
    "recognition, Proc. IEEE 86(11), 1998",
    files=_four_files(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    counts={"train": 60_000, "test": 10_000},
    classes=10,
)

FASHION = Source(
    name="fashion_mnist",
    title="Articles of clothing, 28x28 grey",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    licence="MIT",
    citation="Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747",
    files=_four_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    counts={"train": 60_000, "test": 10_000},
    classes=10,
)

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
"""What the classes of Fashion-MNIST are called."""

DEBIAN_DIRECTORY = pathlib.Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the four files."""

EMNIST_VARIANTS = {
    "balanced": (112_800, 18_800, 47),
    "byclass": (697_932, 116_323, 62),
    "bymerge": (697_932, 116_323, 47),
    "digits": (240_000, 40_000, 10),
    "letters": (124_800, 20_800, 26),
    "mnist": (60_000, 10_000, 10),
}
"""EMNIST's variants, with their numbers of training examples, test examples and labels."""

EMNIST_CHARACTERS = {
    "balanced": CHARACTERS_MERGED,
    "byclass": CHARACTERS,
    "bymerge": CHARACTERS_MERGED,
    "digits": DIGITS,
    "letters": tuple(string.ascii_uppercase),  # of both cases
    "mnist": DIGITS,
}
"""What the classes of EMNIST's variants are called."""

EMNIST = Source(
    name="emnist",
    title="Handwritten letters and digits, 28x28 grey, without writers",
    homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
    licence="public domain (US government work)",
    citation="Cohen, Afshar, Tapson and van Schaik, EMNIST, arXiv:1702.05373",
    files=(
        File(
            "gzip.zip",
            "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
            "md5:58c8d27c78d21e728a6bc7b3cc06412e",
            562,
        ),
    ),
    counts={"train": 112_800, "test": 18_800},
    classes=47,
)

WRITERS = Source(
    name="nist_writers",
    title="MNIST's digits with their writers, from QMNIST's labels",
    homepage="https://github.com/facebookresearch/qmnist",
    licence="BSD 3-clause (labels), CC BY-SA 3.0 (images)",
    citation="Yadav and Bottou, Cold Case: The Lost MNIST Digits, arXiv:1905.10498",
    files=(
        *MNIST.files,
        *(
            File(
                f"qmnist-{part}-labels-idx2-int.gz",
                "https://raw.githubusercontent.com/facebookresearch/qmnist/master/"
                f"qmnist-{part}-labels-idx2-int.gz",
                f"md5:{md5}",
                0.5,
            )
            for part, md5 in (
                ("train", "0058f8dd561b90ffdd0f734c6a30e5e4"),
                ("test", "5b5b05890a5e13444e108efe57b788aa"),
            )
        ),
    ),
    counts={"all": 70_000},
    classes=10,
)


def load_mnist(path: str | None = None) -> Examples:
    """Read MNIST.

    Args:
      path: directory with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same for
        ``t10k``, each with or without ``.gz``; None: ``~/.cache/pflalign_jax/data/mnist``,
        downloaded if it is not there.

    Raises:
      DatasetError: naming the file that is missing or damaged.
    """
    return _load_four_files(MNIST, fetch(MNIST) if path is None else pathlib.Path(path))


def load_fashion_mnist(path: str | None = None) -> Examples:
    """Read Fashion-MNIST, in MNIST's format.

    Args:
      path: directory with the four files of MNIST's names, each with or without ``.gz``; None:
        ``/usr/share/datasets/fashion-mnist`` (Debian's package) if it exists, else
        ``~/.cache/pflalign_jax/data/fashion_mnist``, downloaded if it is not there.

    Raises:
      DatasetError: naming the file that is missing or damaged.
    """
    if path is not None:
        return _load_four_files(FASHION, pathlib.Path(path))
    directory = DEBIAN_DIRECTORY if DEBIAN_DIRECTORY.is_dir() else fetch(FASHION)
    return _load_four_files(FASHION, directory)


def load_emnist(path: str | None = None, variant: str = "balanced") -> Examples:
    """Read EMNIST, images upright.

    Args:
      path: ``gzip.zip``, or a directory with it or with the files of the variant
        (``emnist-balanced-train-images-idx3-ubyte``, ..., with or without ``.gz``);
        None: ``~/.cache/pflalign_jax/data/emnist``, downloaded if it is not there.
      variant: ``"balanced"``, ``"byclass"``, ``"bymerge"``, ``"digits"``, ``"letters"`` (whose
        labels 1..26 become 0..25) or ``"mnist"``.

    Raises:
      DatasetError: naming the variant, or the file that is missing or damaged.
    """
    if variant not in EMNIST_VARIANTS:
        raise DatasetError(
            f"emnist: variant={variant!r} is unknown; choose from {tuple(EMNIST_VARIANTS)}"
        )
    given = fetch(EMNIST) if path is None else pathlib.Path(path)
    archive = given / "gzip.zip" if given.is_dir() else given
    read = _from_zip(archive) if archive.is_file() else _from_directory(given)
    pairs = {}
    for split in ("train", "test"):
        stem = f"emnist-{variant}-{split}"
        pairs[split] = read(f"{stem}-images-idx3-ubyte"), read(f"{stem}-labels-idx1-ubyte")
    examples = _examples(EMNIST, given, pairs)
    # The files of "letters" count from 1, which `mapped_labels` turns into 0..25.
    train, test, classes = EMNIST_VARIANTS[variant]
    found = mapped_labels(examples.y, given)
    source = EMNIST._replace(counts={"train": train, "test": test}, classes=classes)
    # EMNIST's files hold rows and columns exchanged.
    upright = np.ascontiguousarray(examples.x.transpose(0, 2, 1, 3))
    # The characters, not the numbers that `mapped_labels` knows; of damaged files neither.
    names = EMNIST_CHARACTERS[variant] if found.num_classes == classes else None
    examples = examples._replace(x=upright, **found._replace(class_names=names)._asdict())
    return checked_counts(source, examples, given)


def load_nist_writers(path: str | None = None) -> Examples:
    """Read MNIST with the writer of each digit as its owner.

    QMNIST's training labels describe MNIST's training images in order, and the first 10,000 of its
    test labels describe MNIST's test images. A writer is either in MNIST's training set or in its
    test set, so the sets are pooled, and every writer's digits are split anew.

    Args:
      path: directory with MNIST's four files and ``qmnist-train-labels-idx2-int`` and
        ``qmnist-test-labels-idx2-int``, each with or without ``.gz``; None:
        ``~/.cache/pflalign_jax/data/nist_writers``, downloaded if it is not there.

    Raises:
      DatasetError: naming the file that is missing or damaged, or if classes disagree with MNIST's.
    """
    directory = fetch(WRITERS) if path is None else pathlib.Path(path)
    digits = _load_four_files(MNIST, directory)
    owners = []
    for split in ("train", "test"):
        name = f"qmnist-{split}-labels-idx2-int"
        file = find_file(directory, (f"{name}.gz", name), WRITERS)
        labels = read_idx(file)
        mnist_labels = digits.y[digits.split == split]
        count = len(mnist_labels)
        # Columns: class, NIST's series, writer, and five more.
        if labels.ndim != 2 or labels.shape[1] < 3 or len(labels) < count:
            raise DatasetError(
                f"nist_writers: {file} has shape {labels.shape}; it must have 8 columns and at "
                f"least {count} rows, fetch it again"
            )
        # That all classes agree is the only sign that row i is about image i.
        wrong = np.flatnonzero(labels[:count, 0] != mnist_labels)
        if len(wrong):
            raise DatasetError(
                f"nist_writers: {file} has class {labels[wrong[0], 0]} at row {wrong[0]}, MNIST's "
                f"{split} labels have {mnist_labels[wrong[0]]}; the files do not belong together"
            )
        owners.append(labels[:count, 2])
    # Without a split: every writer would be in one of the two sets only.
    pooled = digits._replace(
        name="nist_writers", owner=np.concatenate(owners), split=None, notes=()
    )
    return checked_counts(WRITERS, pooled, directory)


def _load_four_files(source: Source, directory: pathlib.Path) -> Examples:
    """Read MNIST or Fashion-MNIST from its four files."""
    read = _from_directory(directory, source)
    pairs = {
        split: (read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte"))
        for split, part in (("train", "train"), ("test", "t10k"))
    }
    examples = _examples(source, directory, pairs)
    names = FASHION_CLASSES if source is FASHION else DIGITS
    return checked_counts(source, examples._replace(class_names=names), directory)


def _examples(
    source: Source, where: pathlib.Path, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Examples:
    """Return the training and test sets, pairs of images and labels, one after the other."""
    # Both files are well formed by now; what is left is that they are not of the same set.
    for name, (images, labels) in pairs.items():
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DatasetError(
                f"{source.name}: {where} has {name} images of shape {images.shape} and labels of "
                f"shape {labels.shape}; they do not belong together"
            )
    (train, _), (test, _) = pairs["train"], pairs["test"]
    if train.shape[1:] != test.shape[1:]:
        raise DatasetError(
            f"{source.name}: {where} has images of shape {train.shape[1:]} for training and "
            f"{test.shape[1:]} for the test; they do not belong together"
        )
    y = np.concatenate([labels for _, labels in pairs.values()]).astype(np.int32)
    split = np.repeat(["train", "test"], [len(train), len(test)])
    return Examples(
        source.name, np.concatenate([train, test])[..., None], y, source.classes, split=split
    )


def _from_directory(
    directory: pathlib.Path, source: Source = EMNIST
) -> Callable[[str], np.ndarray]:
    """Return a reader of idx files, gzipped or not, by their names."""

    def read(name: str) -> np.ndarray:
        return read_idx(find_file(directory, (f"{name}.gz", name), source))

    return read


def _from_zip(archive: pathlib.Path) -> Callable[[str], np.ndarray]:
    """Return a reader of the idx files in EMNIST's archive by their names."""

    def read(name: str) -> np.ndarray:
        member = f"gzip/{name}.gz"
        try:
            with zipfile.ZipFile(archive) as files:
                return parse_idx(files.read(member), f"{archive}:{member}")
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise DatasetError(
                f"emnist: {member} cannot be read from {archive} ({error}); fetch it again from "
                f"{EMNIST.files[0].url}"
            ) from error

    return read
