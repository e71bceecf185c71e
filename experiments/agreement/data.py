"""The clients, images and batches that both sides train on."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import local
from pflalign_jax.federated.algorithm import ClientData

NUM_CLASSES = 10


def write_digits(folder: pathlib.Path, num_clients: int) -> None:
    """Write scikit-learn's handwritten digits as a dataset of PFLlib, images of 28x28.

    They are divided by Dir(0.3) over labels. Each pixel is three wide and has a little noise, so
    that no two outputs in a window of a pooling layer are equal: PyTorch gives the whole gradient
    to the first of equal maxima, this library shares it.

    Args:
      folder: becomes PFLlib's ``dataset/NAME``.
      num_clients: K.
    """
    digits = datasets.digits(num_clients=num_clients, alpha=0.3, validation_fraction=0.0)
    images = np.kron(digits.x[..., 0] / 16, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    images += np.random.default_rng(0).uniform(0, 0.05, images.shape)
    x = images[:, None].astype(np.float32)  # PyTorch has channels in front
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for k in range(num_clients):
            own = digits.splits[split].of_client(k)
            client = {"x": x[own], "y": digits.y[own].astype(np.int64)}
            np.savez_compressed(folder / split / f"{k}.npz", data=client)  # type: ignore[arg-type]
    config = {"num_clients": num_clients, "num_classes": NUM_CLASSES}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


class BatchOrders:
    """The order in which a client's examples make up its batches, a new one in every round.

    All epochs and phases of a client's round have the same order.

    Attributes:
      sizes: ``[K]`` training examples.
      round: the present round, which whoever trains must set.
    """

    def __init__(self, dataset: FederatedDataset) -> None:
        self.sizes = dataset.splits["train"].sizes
        self.round = 0

    def of_client(self, k: int, size: int | None = None) -> np.ndarray:
        """Return a permutation of ``0..n_k-1`` for the present round, int32.

        Args:
          k: the client.
          size: examples to permute, where some are held out; None: all n_k.
        """
        rng = np.random.default_rng([self.round, k])
        order = rng.permutation(int(self.sizes[k])).astype(np.int32)
        return order if size is None else order[order < size]

    @contextlib.contextmanager
    def imposed(self) -> Iterator[None]:
        """Let this library's clients take their batches in these orders instead of random ones."""

        def padded(k: np.ndarray, size: np.ndarray) -> np.ndarray:
            padding = np.arange(int(size), int(self.sizes.max()), dtype=np.int32)
            return np.concatenate([self.of_client(int(k), int(size)), padding])

        def epoch_order(key: jax.Array, data: ClientData) -> jax.Array:
            del key
            shape = jax.ShapeDtypeStruct(data.positions.shape, jnp.int32)
            return jax.pure_callback(
                padded, shape, data.client_id, data.size, vmap_method="sequential"
            )

        with mock.patch.object(local, "epoch_order", epoch_order):
            yield
