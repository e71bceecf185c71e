"""Head only: FedAvg of the head; everything below it stays as it is."""

from collections.abc import Sequence

import jax

from pflalign_jax.algorithms.partly_fixed import partly_fixed
from pflalign_jax.federated import Algorithm, Loss, local_tx, part_mask
from pflalign_jax.federated.validation import head_layers
from pflalign_jax.models import Model, cross_entropy


def head_only(
    model: Model,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str] | None = None,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return federated averaging of the head alone: what adapters have to beat.

    A round of one client: T steps of SGD on the head, whose change is the message. With a
    pretrained model it is linear probing, and its adapters do nothing, since B stays zero; of
    another model the body stays as it was drawn.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      head: names of the layers that are trained (`pflalign_jax.federated.part_mask`); None: the
        model's head.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
      Data", AISTATS 2017, Algorithm 1, on these parameters.
    """
    layers = head_layers("head_only", model, head)

    def body(params):
        return jax.tree.map(lambda trained: not trained, part_mask(params, layers))

    return partly_fixed(
        loss or cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        fixed_mask=body,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
