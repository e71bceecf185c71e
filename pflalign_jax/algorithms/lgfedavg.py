"""LG-FedAvg: local representations, a global head."""

from collections.abc import Sequence

import jax

from pflalign_jax.algorithms.partly_local import partly_local
from pflalign_jax.federated import Algorithm, Loss, local_tx, part_mask
from pflalign_jax.federated.validation import head_layers
from pflalign_jax.models import Model, cross_entropy


def lgfedavg(
    model: Model,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str] | None = None,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return LG-FedAvg: the mirror image of FedPer.

    The body stays with every client, the head is averaged; both are trained together. A client
    sends what the head has moved.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      head: names of the layers that are shared (`pflalign_jax.federated.part_mask`); None: the
        model's head.

    References:
      Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global
      Representations", arXiv:2001.01523, Algorithm 1. Departure: no auxiliary local objective, as
      in the paper's own experiments on MNIST and CIFAR-10; the global model is not trained by
      FedAvg first; means are weighted by examples, in the authors' code clients count equally.
    """
    layers = head_layers("lgfedavg", model, head)

    def body(params):
        return jax.tree.map(lambda shared: not shared, part_mask(params, layers))

    return partly_local(
        loss or cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        own_mask=body,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
