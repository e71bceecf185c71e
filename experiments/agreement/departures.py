"""What PFLlib does differently from this library, undone one by one.

Each is a context in which PFLlib's run does what this library does, and everything else as ever:
that the two then agree shows that nothing else differs.
"""

import collections
import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.agreement.data import BatchOrders
from experiments.agreement.ours import OurRun
from pflalign_jax.datasets import FederatedDataset


class TheirRun(NamedTuple):
    """A run of PFLlib before its first round.

    Attributes:
      torch: the package.
      server: PFLlib's, with its ``clients``.
      dataset: of the clients.
      orders: of their examples; has the present round.
      ours: our run.
    """

    torch: Any
    server: Any
    dataset: FederatedDataset
    orders: BatchOrders
    ours: OurRun

    def label_counts(self, k: int) -> np.ndarray:
        """Return ``[C]``, the client's training examples of each class."""
        labels = self.dataset.y[self.dataset.splits["train"].of_client(k)]
        return np.bincount(labels, minlength=self.dataset.num_classes)


@contextlib.contextmanager
def squared_norm(run: TheirRun) -> Iterator[None]:
    """FedDyn: the norm that its loss takes is squared."""
    with mock.patch.object(run.torch, "norm", lambda vector, order: (vector**2).sum()):
        yield


@contextlib.contextmanager
def heads_of_zeros(run: TheirRun) -> Iterator[None]:
    """FedRoD: personal heads start at 0, and all examples are counted by class."""
    for client in run.server.clients:
        counts = run.label_counts(client.id)
        client.sample_per_class = run.torch.from_numpy(counts.astype(np.float32))
        for param in client.head.parameters():
            param.data.zero_()
    yield


@contextlib.contextmanager
def later_consensus(run: TheirRun) -> Iterator[None]:
    """FedDBE: the consensus is that of our first round, before which nothing pulls to it."""
    consensus = run.torch.from_numpy(run.ours.servers[1].mean)
    weight = run.server.args.kl_weight

    def follow(client: Any) -> None:
        train = client.train

        def train_with_consensus() -> None:
            client.klw = weight if run.orders.round > 0 else 0.0
            client.global_mean = consensus
            train()

        client.train = train_with_consensus

    for client in run.server.clients:
        follow(client)
    yield


@contextlib.contextmanager
def prototypes_after_training(run: TheirRun) -> Iterator[None]:
    """FedProto: prototypes are means over all examples after the round, weighted by examples."""

    def sums_by_class(client: Any) -> dict[int, tuple[Any, int]]:
        own = run.dataset.splits["train"].of_client(client.id)
        images = run.torch.from_numpy(np.moveaxis(run.dataset.x[own], -1, 1).copy())
        labels = run.dataset.y[own]
        with run.torch.no_grad():
            features = client.model.base(images)
        return {int(c): (features[labels == c].sum(0), sum(labels == c)) for c in np.unique(labels)}

    def collect(client: Any) -> None:
        train = client.train

        def train_and_collect() -> None:
            train()
            client.protos = sums_by_class(client)

        client.train = train_and_collect

    def merged(of_clients: list[dict[int, tuple[Any, int]]]) -> dict[int, Any]:
        means: dict[int, Any] = collections.defaultdict(list)  # [] where PFLlib knows no prototype
        for c in set().union(*of_clients):
            sums, counts = zip(*(found[c] for found in of_clients if c in found), strict=True)
            means[c] = sum(sums) / sum(counts)
        return means

    for client in run.server.clients:
        collect(client)
    module = sys.modules[type(run.server).__module__]
    with mock.patch.object(module, "proto_aggregation", merged):
        yield


@contextlib.contextmanager
def noiseless_policy(run: TheirRun) -> Iterator[None]:
    """FedCP: no noise, our first policy and context, no gain and offset in the normalisation."""
    functional, policy = run.torch.nn.functional, run.ours.servers[0].policy

    def softmax(x: Any, dim: int, **options: Any) -> Any:
        return functional.softmax(x, dim=dim)

    for client in run.server.clients:
        layer, norm, _ = client.model.gate.cs.fc
        layer.weight.data = run.torch.from_numpy(policy["kernel"].T.copy())
        layer.bias.data = run.torch.from_numpy(policy["bias"].copy())
        for param in norm.parameters():
            param.requires_grad = False
        client.context = client.model.model.head.weight.data.sum(0, keepdim=True)
    with mock.patch.object(functional, "gumbel_softmax", softmax):
        yield


@contextlib.contextmanager
def without_gumbel_noise() -> Iterator[None]:
    """Leave the noise out of our FedCP, too: the two sides draw it by other generators."""
    with mock.patch.object(jax.random, "gumbel", lambda key, shape: jnp.zeros(shape)):
        yield
