"""FFA-LoRA: A of every adapter stays as it was drawn; B and the head are averaged."""

from pflalign_jax.algorithms.partly_fixed import partly_fixed
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import has_adapters
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.lora import adapter_mask


def ffa_lora(
    model: Model,
    learning_rate: float = 0.1,
    *,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FFA-LoRA.

    A client trains B of every adapter, and the head where there is one, under the A that all share
    since the start, and sends what they have moved; the server averages as FedAvg does. With one A
    the mean of the products is the product of the mean: ``Σ p_i A B_i = A Σ p_i B_i``.

    Args:
      model: what is trained, with adapters; see `pflalign_jax.models.lora`.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.

    References:
      Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", arXiv:2403.12313,
      section 4. The head is trained and averaged, as where the authors of FedSA-LoRA run this
      method. Departure: no differential privacy of its own; `pflalign_jax.messages` has it.
    """
    tx = local_tx(learning_rate, local_optimizer)
    has_adapters("ffa_lora", model)
    return partly_fixed(
        loss or cross_entropy(model),
        tx,
        fixed_mask=lambda params: adapter_mask(params, "a"),
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
