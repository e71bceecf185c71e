"""FedOpt: FedAvg with any optimiser on the server."""

import optax

from pflalign_jax.algorithms.averaging import averaging
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.models import Model, cross_entropy


def fedopt(
    model: Model,
    learning_rate: float = 0.1,
    *,
    server_optimizer: optax.GradientTransformation,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAvg whose server takes ``-Σ p_i (w_i - w)`` for a gradient.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      server_optimizer: any optax transform; ``optax.sgd(1.0)`` is FedAvg.

    References:
      Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, Algorithm 1.
    """
    return averaging(
        loss or cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        server_optimizer,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
