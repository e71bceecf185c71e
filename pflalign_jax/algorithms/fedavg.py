"""FedAvg; scored after local adaptation it is fine-tuned FedAvg, a strong baseline."""

from pflalign_jax.algorithms.averaging import averaging
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.models import Model, cross_entropy


def fedavg(
    model: Model,
    learning_rate: float = 0.1,
    *,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAvg.

    A round of one client: T steps of SGD from the global model, ``w_i -= η g``; the message is
    ``w_i - w``. The server: ``w += Σ p_i (w_i - w)``, weighted by training examples. A client's
    personal model is the global one; ``personal / adapted`` scores it after the local steps.

    Args:
      model: what is trained.
      learning_rate: ``η``, the step size of a client's optimiser.
      loss: ``(params, Batch, key) -> scalar``, the mean over a batch's real examples; None: the
        model's `pflalign_jax.models.cross_entropy`.
      local_optimizer: what a client steps with, new in every round: "sgd", as in the paper,
        "momentum" or "adamw"; see `pflalign_jax.federated.local_tx`.
      local_epochs: passes over its data that a client makes in a round.
      batch_size: examples in a local step.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
      Data", AISTATS 2017, Algorithm 1.
    """
    return averaging(
        loss or cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
