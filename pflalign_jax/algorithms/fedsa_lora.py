"""FedSA-LoRA: A of every adapter is averaged; B and the head stay with every client."""

import jax

from pflalign_jax.algorithms.partly_local import partly_local
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import has_adapters
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.lora import adapter_mask


def fedsa_lora(
    model: Model,
    learning_rate: float = 0.1,
    *,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedSA-LoRA.

    A client joins the received A and its own B, and its own head where there is one, takes T steps
    of SGD on all of them, keeps B and the head and sends what A has moved. The server averages A:
    ``A += Σ p_i (A_i - A)``.

    Args:
      model: what is trained, with adapters; see `pflalign_jax.models.lora`.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.

    References:
      Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
      arXiv:2410.01463, section 3.2. The head stays local, as the authors' code has it
      (``local_param: ['lora_B', 'classifier']``).
    """
    tx = local_tx(learning_rate, local_optimizer)
    has_adapters("fedsa_lora", model)

    def own(params):
        return jax.tree.map(lambda shared: not shared, adapter_mask(params, "a"))

    return partly_local(
        loss or cross_entropy(model),
        tx,
        own_mask=own,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
