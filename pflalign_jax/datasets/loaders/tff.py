"""TensorFlow Federated's HDF5 files: clients as groups below ``examples``."""

import contextlib
import pathlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.characters import CHARACTERS
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, find_file

BASE = "https://storage.googleapis.com/tff-datasets-public"
CITATION = "Caldas et al., LEAF: A Benchmark for Federated Settings, arXiv:1812.01097"

FEMNIST = Source(
    name="femnist",
    title="Handwritten digits and letters by writer, 28x28 grey, as TFF distributes them",
    homepage="https://www.tensorflow.org/federated/api_docs/python/tff/simulation/datasets/emnist",
    licence="public domain (NIST SD 19, US government work)",
    citation=CITATION,
    files=(
        File(
            "fed_emnist.tar.bz2",
            f"{BASE}/fed_emnist.tar.bz2",
            "sha256:fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0",
            170,
        ),
    ),
    counts={"train": 671_585, "test": 77_483},
    classes=62,
    clients=3400,
)

FEMNIST_DIGITS = FEMNIST._replace(
    files=(
        File(
            "fed_emnist_digitsonly.tar.bz2",
            f"{BASE}/fed_emnist_digitsonly.tar.bz2",
            "sha256:55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b",
            90,
        ),
    ),
    counts={"train": 341_873, "test": 40_832},
    classes=10,
    clients=3383,
)

STEMS = {"all": "fed_emnist", "digits": "fed_emnist_digitsonly"}
"""What the names of a variant's files begin with."""


def load_femnist_tff(path: str | pathlib.Path, variant: str = "all") -> Examples:
    """Read TFF's FEMNIST; ink is dark on white paper, stored as uint8.

    Args:
      path: a directory with ``fed_emnist_train.h5`` and ``fed_emnist_test.h5`` (``"digits"``:
        ``fed_emnist_digitsonly_...``) or with the archive that holds them, or that archive.
      variant: ``"all"`` (62 classes) or ``"digits"`` (10).

    Raises:
      DatasetError: naming the file, and the client, for what is missing or damaged.
    """
    source = FEMNIST if variant == "all" else FEMNIST_DIGITS
    parts = []
    for split in ("train", "test"):
        with opened(path, STEMS[variant], split, source) as (file, name):
            parts.append(_images(file["examples"], name))
    x, y, owner = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if y.min() < 0 or y.max() >= source.classes:
        raise DatasetError(f"femnist: {path} has label {y.max()}, above {source.classes - 1}")
    splits = np.repeat(["train", "test"], [len(part[1]) for part in parts])
    names = CHARACTERS[: source.classes]
    examples = Examples("femnist", x, y, source.classes, owner, splits, class_names=names)
    return checked_counts(source, examples, path)


@contextlib.contextmanager
def opened(path: str | pathlib.Path, stem: str, split: str, source: Source) -> Iterator[tuple]:
    """Yield an open HDF5 file ``STEM_SPLIT.h5`` of a directory or an archive, and its name.

    Raises:
      DatasetError: naming the file, if it is missing, damaged or has no group ``examples``.
    """
    import h5py  # here, because nothing else needs it

    path, name = pathlib.Path(path), f"{stem}_{split}.h5"
    if path.is_dir() and not (path / name).is_file():
        path = find_file(path, (f"{stem}.tar.bz2", name), source)
    # HDF5 has to jump inside a file, which a compressed archive does not allow: its member is
    # unpacked to a scratch directory.
    with tempfile.TemporaryDirectory() as scratch:
        file = path / name
        if path.is_file():
            try:
                _extract(path, name, pathlib.Path(scratch) / name)
            except (OSError, EOFError, KeyError, tarfile.TarError) as error:
                raise DatasetError(
                    f"{source.name}: {name} cannot be read from {path} ({error}); fetch it again "
                    f"from {source.files[0].url}"
                ) from error
            file = pathlib.Path(scratch) / name
        try:
            content = h5py.File(file, "r")
        except OSError as error:
            raise DatasetError(
                f"{source.name}: {file} cannot be read as HDF5 ({error}); it is truncated or "
                f"damaged, fetch it again from {source.files[0].url}"
            ) from error
        with content:
            clients = content.get("examples")
            if not isinstance(clients, h5py.Group) or not len(clients):
                raise DatasetError(
                    f"{source.name}: {name} has no clients below 'examples'; it is not a TFF file"
                )
            try:
                yield content, name
            # The caller reads while this generator waits: a damaged block is met only then.
            except OSError as error:
                raise DatasetError(
                    f"{source.name}: {name} cannot be read ({error}); it is damaged, fetch it "
                    f"again from {source.files[0].url}"
                ) from error


def _extract(archive: pathlib.Path, name: str, target: pathlib.Path) -> None:
    """Write a member of an archive to a file, reading the archive up to that member only."""
    with tarfile.open(archive, "r|*") as members:
        for member in members:
            if member.isfile() and pathlib.PurePosixPath(member.name).name == name:
                content = members.extractfile(member)
                assert content is not None  # it is a file
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                return
    raise KeyError(f"no member {name}")


def _images(clients: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return uint8 ``[N, 28, 28, 1]``, int32 ``[N]`` and owners of all clients of a file.

    Args:
      clients: client to its HDF5 group.
      name: of the file, for messages.
    """
    # Sizes first, so that images are converted to bytes into one array: as float32, all clients
    # together would take four times the memory.
    sizes = {}
    for client, group in clients.items():
        if not {"pixels", "label"} <= set(getattr(group, "keys", tuple)()):
            raise DatasetError(f"femnist: client {client!r} of {name} has no 'pixels' and 'label'")
        shape = group["pixels"].shape
        if shape[1:] != (28, 28) or group["label"].shape != shape[:1]:
            raise DatasetError(
                f"femnist: client {client!r} of {name} has pixels of shape {shape} and labels of "
                f"{group['label'].shape}; they must be [n, 28, 28] and [n]"
            )
        if shape[0]:
            sizes[client] = shape[0]
    if not sizes:
        raise DatasetError(f"femnist: {name} has no images")
    x = np.empty((sum(sizes.values()), 28, 28, 1), np.uint8)
    y, start = np.empty(len(x), np.int32), 0
    for client, size in sizes.items():
        end = start + size
        pixels = clients[client]["pixels"][()]
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise DatasetError(f"femnist: client {client!r} of {name} has pixels outside [0, 1]")
        x[start:end, ..., 0] = np.round(255 * pixels)
        y[start:end], start = clients[client]["label"][()], end
    return x, y, np.repeat(np.array(list(sizes)), list(sizes.values()))
