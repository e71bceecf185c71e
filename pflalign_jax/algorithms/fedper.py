"""FedPer: a shared body, a head that stays with every client."""

from collections.abc import Sequence

from pflalign_jax.algorithms.partly_local import partly_local
from pflalign_jax.federated import Algorithm, Loss, local_tx, part_mask
from pflalign_jax.federated.validation import head_layers
from pflalign_jax.models import Model, cross_entropy


def fedper(
    model: Model,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str] | None = None,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedPer.

    A client joins the received body and its own head, takes T steps of SGD on both, keeps the
    head and sends what the body has moved. The server averages bodies as FedAvg does models. With
    an empty head it is FedAvg.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      head: names of the layers that stay with the client (`pflalign_jax.federated.part_mask`);
        None: the model's head.

    References:
      Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv:1912.00818,
      Algorithm 1. Departure: all heads start equal, as in PFLlib; there each is drawn at random.
    """
    layers = head_layers("fedper", model, head)
    return partly_local(
        loss or cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        own_mask=lambda params: part_mask(params, layers),
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
