"""FedAvg; scored after local adaptation it is fine-tuned FedAvg, a strong baseline."""

from pflalign_jax.algorithms.averaging import averaging
from pflalign_jax.federated import Algorithm, Loss, local_sgd


def fedavg(
    loss: Loss, learning_rate: float = 0.1, *, local_epochs: int = 1, batch_size: int = 10
) -> Algorithm:
    """Return FedAvg.

    A round of one client: T steps of SGD from the global model, ``w_i -= η g``; the message is
    ``w_i - w``. The server: ``w += Σ p_i (w_i - w)``, weighted by training examples. A client's
    personal model is the global one; ``personal / adapted`` scores it after the local steps.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      learning_rate: ``η`` of SGD.
      local_epochs, batch_size: local work per round.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
      Data", AISTATS 2017, Algorithm 1.
    """
    return averaging(
        loss, local_sgd(learning_rate), local_epochs=local_epochs, batch_size=batch_size
    )
