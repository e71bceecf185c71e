"""A run of PFLlib before its first round, whose differences from ours can be undone."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

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

    def examples(self, k: int) -> tuple[Any, Any]:
        """Return the client's training examples and labels, in the order of the file."""
        own = self.dataset.splits["train"].of_client(k)
        x = np.ascontiguousarray(np.moveaxis(self.dataset.x[own], -1, 1))
        return self.torch.from_numpy(x), self.torch.from_numpy(self.dataset.y[own].astype(np.int64))

    def by_all_examples(self, client: Any, method: str) -> None:
        """Let a method of a client see all examples in one batch, in the order of the file."""
        called = getattr(client, method)

        def all_examples(batch_size: int | None = None) -> list[tuple[Any, Any]]:
            return [self.examples(client.id)]

        def call(*args: Any) -> Any:
            with mock.patch.object(client, "load_train_data", all_examples):
                return called(*args)

        setattr(client, method, call)

    def weigh_clients(self, weight: Callable[[int], float]) -> None:
        """Let the server average models with these weights of clients, scaled to the sum 1."""
        server = self.server
        base: Any = type(server).__base__

        def aggregate() -> None:
            weights = np.array([weight(k) for k in server.uploaded_ids], float)
            server.uploaded_weights = (weights / weights.sum()).tolist()
            base.aggregate_parameters(server)

        server.aggregate_parameters = aggregate
        server.add_parameters = lambda *args: base.add_parameters(server, *args)


def to_tensor(torch: Any, array: Any) -> Any:
    """Return a writable copy of an array as a tensor."""
    return torch.from_numpy(np.array(array))
