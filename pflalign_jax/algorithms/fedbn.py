"""FedBN: normalisation layers stay with every client."""

from collections.abc import Sequence

from pflalign_jax.algorithms.partly_local import partly_local
from pflalign_jax.federated import Algorithm, Loss, local_tx, part_mask
from pflalign_jax.models import Model, cross_entropy


def fedbn(
    model: Model,
    learning_rate: float = 0.1,
    *,
    norms: Sequence[str] = ("*Norm*",),
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedBN: FedAvg of everything but normalisation layers.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      norms: names or patterns of the layers that stay with the client; with batch normalisation
        that is scale, bias and running statistics, which are parameters here.

    Raises:
      ValueError: when the parameters are made, for a model without such layers.

    References:
      Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
      arXiv:2102.07623, Algorithm 1. Departure: means are weighted by examples, in the authors' code
      clients count equally.
    """
    return partly_local(
        loss or cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        own_mask=lambda params: part_mask(params, norms),
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
