"""LG-FedAvg: local representations, a global head."""

from collections.abc import Sequence

import jax

from pflalign_jax.algorithms.partly_local import partly_local
from pflalign_jax.federated import Algorithm, Loss, local_sgd, part_mask


def lgfedavg(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str],
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return LG-FedAvg: the mirror image of FedPer.

    The body stays with every client, the head is averaged; both are trained together.

    Args:
      loss, learning_rate, local_epochs, batch_size: as in `fedavg`.
      head: names of the layers that are shared, see `pflalign_jax.federated.part_mask`.

    References:
      Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global
      Representations", arXiv:2001.01523, Algorithm 1. Departure: no auxiliary local objective, as
      in the paper's own experiments on MNIST and CIFAR-10; the global model is not trained by
      FedAvg first; means are weighted by examples, in the authors' code clients count equally.
    """

    def body(params):
        return jax.tree.map(lambda shared: not shared, part_mask(params, head))

    tx = local_sgd(learning_rate)
    return partly_local(loss, tx, body, local_epochs=local_epochs, batch_size=batch_size)
