"""Named federated datasets: examples, partition and splits put together."""

import difflib
import hashlib
import os
import pathlib

import numpy as np
import sklearn.datasets

from pflalign_jax.datasets import partition as partitions
from pflalign_jax.datasets.base import SPLITS, DatasetError, FederatedDataset
from pflalign_jax.datasets.fashion_files import load_fashion_mnist
from pflalign_jax.datasets.npz_files import load_npz
from pflalign_jax.datasets.split import own, split_clients

PARTITIONS = ("iid", "dirichlet", "pathological", "natural")


def digits(
    num_clients: int = 20,
    partition: str = "dirichlet",
    *,
    alpha: float = 0.1,
    classes_per_client: int = 2,
    min_examples: int = 8,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> FederatedDataset:
    """Return scikit-learn's bundled digits, 1,797 images 8x8x1 in 10 classes, over clients.

    Features are uint8 0..16, normalised to [0, 1].

    Args:
      num_clients: K.
      partition: ``"iid"``, ``"dirichlet"`` or ``"pathological"``, see
        `pflalign_jax.datasets.partition`.
      alpha, min_examples: of the Dirichlet partition.
      classes_per_client: of the pathological partition.
      validation_fraction, test_fraction: held out inside every client.
      seed: of partition and splits.

    Raises:
      DatasetError: naming the argument and its value.

    References:
      Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (CC BY 4.0).
    """
    bunch = sklearn.datasets.load_digits()
    x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int32)
    names, parts = _partition(
        y, None, num_clients, partition, alpha, classes_per_client, min_examples, seed
    )
    splits = split_clients(parts, validation_fraction, test_fraction, seed)
    return _assemble("digits", x, y, 10, splits, names, mean=0.0, std=16.0)


def fashion_mnist(
    num_clients: int = 20,
    partition: str = "dirichlet",
    *,
    path: str | None = None,
    alpha: float = 0.1,
    classes_per_client: int = 2,
    min_examples: int = 40,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.25,
    fraction: float = 1.0,
    seed: int = 0,
) -> FederatedDataset:
    """Return Fashion-MNIST, 70,000 images 28x28x1 in 10 classes, over clients.

    Train and test sets are pooled, as PFLlib does, and split again inside every client. Features
    are uint8, normalised to [-1, 1].

    Args:
      num_clients, partition, alpha, classes_per_client, min_examples, validation_fraction,
        test_fraction, seed: see `digits`.
      path: directory with the idx files; None: Debian's package, else TFDS.
      fraction: seeded random part of the 70,000 to use, in (0, 1].

    Raises:
      DatasetError: naming the file or argument.

    References:
      Xiao, Rasul and Vollgraf, arXiv:1708.07747. MIT licence.
    """
    x, y = load_fashion_mnist(path)
    if not 0 < fraction <= 1:
        raise DatasetError(f"fraction={fraction} is not allowed; it must be in (0, 1]")
    if fraction < 1:
        order = np.random.default_rng(seed).permutation(len(y))
        kept = np.sort(order[: round(fraction * len(y))])
        x, y = x[kept], y[kept]
    names, parts = _partition(
        y, None, num_clients, partition, alpha, classes_per_client, min_examples, seed
    )
    splits = split_clients(parts, validation_fraction, test_fraction, seed)
    return _assemble("fashion_mnist", x, y, 10, splits, names)


def npz(
    path: str,
    *,
    num_clients: int | None = None,
    partition: str = "natural",
    alpha: float = 0.1,
    classes_per_client: int = 2,
    min_examples: int = 8,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.25,
    num_classes: int | None = None,
    seed: int = 0,
) -> FederatedDataset:
    """Return your own data from npz files with arrays ``x``, ``y`` and ``client``.

    With ``partition="natural"`` every owner in ``client`` is a client, and the files' test
    examples stay test examples; if they hold no validation split, ``validation_fraction`` of each
    client's training examples becomes one. Any other partition pools all examples and deals them
    out anew to ``num_clients`` clients. uint8 features are normalised to [-1, 1], others are used
    as they are (floats as float32).

    Args:
      path: a directory with ``train.npz`` and ``test.npz``, or one npz file with a ``split`` array
        of ``"train"``, ``"validation"``, ``"test"``, or a directory with ``x.npy``, ``y.npy``,
        ``client.npy`` and ``split.npy``; there ``x`` is memory-mapped and may be larger than
        memory, with client states in host memory or on disk.
      num_clients, alpha, classes_per_client, min_examples, test_fraction: of the other
        partitions, see `digits`.
      partition: ``"natural"`` or one of the others.
      validation_fraction: see above.
      num_classes: number of labels; None: the largest label plus one.
      seed: of partition and splits.

    Raises:
      DatasetError: naming the file or argument, the bad value and what to do.
    """
    x, y, client, split = load_npz(path)
    if num_classes is None:
        num_classes = int(y.max()) + 1
    elif y.max() >= num_classes:
        raise DatasetError(
            f"{path}: label {y.max()} at example {int(np.argmax(y))} is outside "
            f"0..{num_classes - 1}; correct it or num_classes={num_classes}"
        )
    y = y.astype(np.int32)
    if partition == "natural" and num_clients is not None:
        raise DatasetError(
            f"num_clients={num_clients} does not go with the natural partition, whose clients are "
            "the owners in the file; leave it at None or choose another partition"
        )
    names, parts = _partition(
        y, client, num_clients, partition, alpha, classes_per_client, min_examples, seed
    )
    if partition != "natural":
        splits = split_clients(parts, validation_fraction, test_fraction, seed)
    else:
        given = {s: [part[split[part] == s] for part in parts] for s in SPLITS}
        splits = {s: own(owned) for s, owned in given.items()}
        if not len(splits["validation"].indices):
            inner = split_clients(given["train"], validation_fraction, 0.0, seed)
            splits.update(train=inner["train"], validation=inner["validation"])
    name = pathlib.Path(os.path.abspath(path)).stem
    return _assemble(name, x, y, num_classes, splits, names)


def describe(dataset: FederatedDataset) -> dict[str, object]:
    """Return a dataset's name, number of clients and classes, and examples per split.

    ``train_per_client`` has the smallest, median and largest number of training examples.
    """
    sizes = dataset.splits["train"].sizes
    return {
        "name": dataset.name,
        "clients": dataset.num_clients,
        "classes": dataset.num_classes,
        **{split: len(dataset.splits[split].indices) for split in SPLITS},
        "train_per_client": [int(sizes.min()), float(np.median(sizes)), int(sizes.max())],
    }


def partition_hash(dataset: FederatedDataset) -> str:
    """Return a sha256 over clients' names, all splits and the labels, as hexadecimal digits."""
    digest = hashlib.sha256("\n".join(dataset.client_names.tolist()).encode())
    arrays = [dataset.y] + [a for split in SPLITS for a in dataset.splits[split]]
    for array in arrays:
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    return digest.hexdigest()


def save_partition(path: str | os.PathLike, dataset: FederatedDataset) -> None:
    """Write who owns what to an npz file, whole or not at all.

    Arrays: ``client_names``, and for every split ``<split>_indices`` and ``<split>_offsets``;
    ``dataset``, ``num_examples`` and ``hash`` tell what they belong to.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".partial")
    arrays = {
        f"{split}_{field}": getattr(dataset.splits[split], field)
        for split in SPLITS
        for field in ("indices", "offsets")
    }
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            client_names=dataset.client_names,
            dataset=np.array(dataset.name),
            num_examples=np.array(len(dataset.y)),
            hash=np.array(partition_hash(dataset)),
            **arrays,
        )
    temporary.replace(path)


def select_clients(dataset: FederatedDataset, positions: np.ndarray) -> FederatedDataset:
    """Return the dataset of some of the clients, or of all in another order; ``x`` is shared.

    Args:
      dataset: of K clients.
      positions: ``[C]`` different positions; client ``positions[i]`` comes to position ``i`` and
        keeps its name, its examples and its id.

    Raises:
      DatasetError: for a position outside ``0..K-1`` or one named twice.
    """
    positions = np.asarray(positions)
    if (
        len(np.unique(positions)) < len(positions)
        or not ((positions >= 0) & (positions < dataset.num_clients)).all()
    ):
        raise DatasetError(
            f"positions={positions} are not different clients out of {dataset.num_clients}"
        )
    splits = {}
    for split, owned in dataset.splits.items():
        parts = [owned.indices[owned.offsets[k] : owned.offsets[k + 1]] for k in positions]
        splits[split] = own(parts)
    return dataset._replace(
        splits=splits,
        client_names=dataset.client_names[positions],
        client_ids=dataset.client_ids[positions],
    )


def _partition(
    labels, owners, num_clients, partition, alpha, classes_per_client, min_examples, seed
):
    """Return client names and index arrays of the partition named."""
    if partition not in PARTITIONS:
        close = difflib.get_close_matches(partition, PARTITIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(f"partition={partition!r} is unknown; {hint}Choose from {PARTITIONS}")
    if partition == "natural":
        if owners is None:
            raise DatasetError(
                "partition='natural' needs data with owners; this dataset has none, choose from "
                f"{PARTITIONS[:-1]}"
            )
        return partitions.natural(owners)
    if num_clients is None:
        raise DatasetError(f"partition={partition!r} needs num_clients")
    if partition == "iid":
        parts = partitions.iid(len(labels), num_clients, seed)
    elif partition == "dirichlet":
        parts = partitions.dirichlet(labels, num_clients, alpha, min_examples, seed)
    else:
        parts = partitions.pathological(labels, num_clients, classes_per_client, seed)
    return np.arange(num_clients).astype(str), parts


def _assemble(name, x, y, num_classes, splits, names, mean=None, std=None):
    """Return the checked dataset; uint8 features are normalised to [-1, 1] unless told."""
    if mean is None:
        mean, std = (127.5, 127.5) if x.dtype == np.uint8 else (0.0, 1.0)
    empty = np.flatnonzero(splits["train"].sizes == 0)
    if len(empty):
        raise DatasetError(
            f"{name}: {len(empty)} clients have no training example, the first is "
            f"{names[empty[0]]!r}; give them some or remove them"
        )
    return FederatedDataset(
        name,
        x,
        y,
        num_classes,
        splits,
        names,
        np.arange(len(names), dtype=np.int32),
        np.float32(mean),
        np.float32(std),
    )
