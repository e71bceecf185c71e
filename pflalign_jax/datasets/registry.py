"""The datasets by name: every function loads examples and gives them to clients.

All take the keyword arguments of `pflalign_jax.datasets.partition_examples`. Files, licences and
numbers of examples are in `pflalign_jax.datasets.SOURCES`.
"""

from typing import Unpack

from pflalign_jax.datasets.base import DatasetError, FederatedDataset
from pflalign_jax.datasets.loaders import ag_news as ag_news_files
from pflalign_jax.datasets.loaders import cifar, intents, scikit_learn, tff
from pflalign_jax.datasets.loaders import digits as digits_files
from pflalign_jax.datasets.loaders import mnist as mnist_files
from pflalign_jax.datasets.loaders import shakespeare as shakespeare_files
from pflalign_jax.datasets.loaders import sotu_presidents as sotu_files
from pflalign_jax.datasets.loaders import tiny_imagenet as tiny_imagenet_files
from pflalign_jax.datasets.loaders import uci_har as uci_har_files
from pflalign_jax.datasets.loaders.femnist import load_femnist
from pflalign_jax.datasets.loaders.fl_bench import load_fl_bench
from pflalign_jax.datasets.loaders.hugging_face import load_hugging_face
from pflalign_jax.datasets.loaders.image_folder import load_image_folder
from pflalign_jax.datasets.loaders.leaf import load_leaf
from pflalign_jax.datasets.loaders.npz import load_npz
from pflalign_jax.datasets.loaders.pfllib import load_pfllib
from pflalign_jax.datasets.loaders.synthetic import make_synthetic
from pflalign_jax.datasets.loaders.tables import CLIENT_COLUMN, load_tables
from pflalign_jax.datasets.partition_examples import PartitionOptions, partition_examples

SOURCES = {
    source.name: source
    for source in (
        digits_files.SOURCE,
        scikit_learn.DIABETES,
        scikit_learn.BREAST_CANCER,
        scikit_learn.DIGITS_ATTRIBUTES,
        mnist_files.MNIST,
        mnist_files.FASHION,
        mnist_files.EMNIST,
        tff.FEMNIST,
        mnist_files.WRITERS,
        cifar.CIFAR10,
        cifar.CIFAR100,
        tiny_imagenet_files.SOURCE,
        shakespeare_files.SOURCE,
        ag_news_files.SOURCE,
        intents.CLINC150,
        intents.BANKING77,
        sotu_files.SOURCE,
        uci_har_files.SOURCE,
    )
}
"""Name to `Source`: licence, citation, files and counts of each dataset."""


def digits(**options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return scikit-learn's bundled digits, 1,797 images 8x8x1 in 10 classes, over clients.

    Features are uint8 0..16, normalised to [0, 1].

    References:
      Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (CC BY 4.0).
    """
    return partition_examples(digits_files.load_digits(), **options)


def diabetes(client_column: str = "age", **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return scikit-learn's diabetes, 442 patients by age and its progression; regression.

    Args:
      client_column: see `load_diabetes`.
      options: keyword arguments of `partition_examples`; ``normalise="train"`` is advised.

    References:
      Efron, Hastie, Johnstone and Tibshirani, "Least Angle Regression", Annals of Statistics, 2004.
    """
    return partition_examples(scikit_learn.load_diabetes(client_column), **options)


def breast_cancer(
    client_column: str = "mean symmetry", **options: Unpack[PartitionOptions]
) -> FederatedDataset:
    """Return scikit-learn's breast cancer, 569 tumours by symmetry, malignant (1) or not; binary.

    Args:
      client_column: see `load_breast_cancer`.
      options: keyword arguments of `partition_examples`; ``normalise="train"`` is advised.

    References:
      Wolberg, Mangasarian, Street and Street, "Breast Cancer Wisconsin (Diagnostic)", UCI, 1993
      (CC BY 4.0).
    """
    return partition_examples(scikit_learn.load_breast_cancer(client_column), **options)


def digits_attributes(**options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return scikit-learn's digits with five attributes (even, prime, ...) as labels; multilabel.

    The labels are derived from the digit (`load_digits_attributes`). Partitions by label go by
    their combination, which is the digit, up to 5 and 7 with the same attributes.
    """
    return partition_examples(scikit_learn.load_digits_attributes(), **options)


def mnist(path: str | None = None, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return MNIST, 70,000 images 28x28x1 in 10 classes.

    Args:
      path: see `load_mnist`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(mnist_files.load_mnist(path), **options)


def fashion_mnist(path: str | None = None, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return Fashion-MNIST, 70,000 images 28x28x1 in 10 classes.

    Args:
      path: see `load_fashion_mnist`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(mnist_files.load_fashion_mnist(path), **options)


def emnist(
    path: str | None = None, variant: str = "balanced", **options: Unpack[PartitionOptions]
) -> FederatedDataset:
    """Return EMNIST, letters and digits 28x28x1 without writers.

    Args:
      path, variant: see `load_emnist`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(mnist_files.load_emnist(path, variant), **options)


def femnist(
    path: str | None = None,
    variant: str = "all",
    data_dir: str | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return FEMNIST, letters and digits 28x28x1 of about 3,400 writers.

    Args:
      path, variant, data_dir: see `load_femnist`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(load_femnist(path, variant, data_dir), **options)


def nist_writers(path: str | None = None, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return MNIST's digits by writer, joined to QMNIST's labels.

    Args:
      path: see `load_nist_writers`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(mnist_files.load_nist_writers(path), **options)


def cifar10(path: str | None = None, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return CIFAR-10, 60,000 images 32x32x3 in 10 classes.

    Args:
      path: see `load_cifar10`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(cifar.load_cifar10(path), **options)


def cifar100(
    path: str | None = None, labels: str = "fine", **options: Unpack[PartitionOptions]
) -> FederatedDataset:
    """Return CIFAR-100, 60,000 images 32x32x3; their natural owners are superclasses.

    Args:
      path, labels: see `load_cifar100`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(cifar.load_cifar100(path, labels), **options)


def tiny_imagenet(path: str | None = None, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return Tiny-ImageNet, 110,000 images 64x64x3 in 200 classes.

    Args:
      path: see `load_tiny_imagenet`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(tiny_imagenet_files.load_tiny_imagenet(path), **options)


def shakespeare(
    path: str, length: int = 80, **options: Unpack[PartitionOptions]
) -> FederatedDataset:
    """Return Shakespeare by role, to predict the next character.

    Args:
      path, length: see `load_shakespeare`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(shakespeare_files.load_shakespeare(path, length), **options)


def ag_news(
    path: str | None = None,
    length: int = 64,
    vocabulary: int = 20_000,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return AG News, 127,600 news items in four topics, as words.

    Args:
      path, length, vocabulary: see `load_ag_news`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(ag_news_files.load_ag_news(path, length, vocabulary), **options)


def uci_har(path: str | None = None, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return UCI HAR, six activities of 30 people, signals [128, 9].

    Args:
      path: see `load_uci_har`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(uci_har_files.load_uci_har(path), **options)


def synthetic(
    model_alpha: float = 1.0,
    beta: float = 1.0,
    devices: int = 30,
    iid: bool = False,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return FedProx's synthetic clients, drawn with the same seed.

    Args:
      model_alpha, beta, devices, iid: see `make_synthetic`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(
        make_synthetic(model_alpha, beta, devices, iid, options.get("seed", 0)), **options
    )


def leaf(
    path: str, shape: tuple[int, ...] | None = None, **options: Unpack[PartitionOptions]
) -> FederatedDataset:
    """Return any dataset of numbers in LEAF's json format.

    Args:
      path, shape: see `load_leaf`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(load_leaf(path, shape), **options)


def pfllib(path: str, **options: Unpack[PartitionOptions]) -> FederatedDataset:
    """Return a dataset that PFLlib has written, with its clients and its split.

    Args:
      path: see `load_pfllib`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(load_pfllib(path), **options)


def fl_bench(
    path: str,
    data: str | None = None,
    data_path: str | None = None,
    shape: tuple[int, ...] | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return a dataset with FL-bench's ``partition.pkl``, with its clients and its split.

    Args:
      path, data, data_path, shape: see `load_fl_bench`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(load_fl_bench(path, data, data_path, shape), **options)


def hugging_face(
    path: str,
    label: str = "label",
    features: str | None = None,
    client_column: str | None = None,
    task: str | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return a dataset of Hugging Face's ``datasets``, or partitions of flwr-datasets.

    Args:
      path, label, features, client_column, task: see `load_hugging_face`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(
        load_hugging_face(path, label, features, client_column, task), **options
    )


def npz(
    path: str,
    num_classes: int | None = None,
    missing: str = "refuse",
    task: str | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return your own arrays ``x``, ``y``, ``client`` in npz or npy files.

    Args:
      path, num_classes, missing, task: see `load_npz`.
      options: keyword arguments of `partition_examples`.
    """
    return partition_examples(load_npz(path, num_classes, missing, task), **options)


def tables(
    path: str,
    label: str | tuple[str, ...] = "label",
    client_column: str | None = None,
    split_column: str | None = None,
    missing: str = "refuse",
    task: str | None = None,
    ignore: tuple[str, ...] = (),
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return your own tables in csv or parquet files.

    Args:
      path, label, client_column, split_column, missing, task, ignore: see `load_tables`.
      options: keyword arguments of `partition_examples`.

    Raises:
      DatasetError: for a ``client_column`` that a partition would ignore.
    """
    partition = options.get("partition")
    if client_column is not None and partition not in (None, "natural"):
        raise DatasetError(
            f"client_column={client_column!r} does nothing with partition={partition!r}, which "
            "deals the examples to clients of its own; use partition='natural', or leave "
            "client_column out"
        )
    clients = client_column or CLIENT_COLUMN
    examples = load_tables(path, label, clients, split_column, missing, task, ignore)
    return partition_examples(examples, **options)


def image_folder(
    path: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    file_column: str = "file",
    label: str | tuple[str, ...] = "label",
    client_column: str = "client",
    split_column: str | None = None,
    missing: str = "refuse",
    task: str | None = None,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return your own images, in folders client/class or named by a csv file.

    Args:
      path, size, channels, file_column, label, client_column, split_column, missing, task: see
        `load_image_folder`.
      options: keyword arguments of `partition_examples`.
    """
    examples = load_image_folder(
        path, size, channels, file_column, label, client_column, split_column, missing, task
    )
    return partition_examples(examples, **options)
