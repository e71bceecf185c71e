"""FedOpt: FedAvg with any optimiser on the server."""

import optax

from pflalign_jax.algorithms.averaging import averaging
from pflalign_jax.federated import Algorithm, Loss, local_sgd


def fedopt(
    loss: Loss,
    server_optimizer: optax.GradientTransformation,
    learning_rate: float = 0.1,
    *,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAvg whose server takes ``-Σ p_i (w_i - w)`` for a gradient.

    Args:
      loss, local_epochs, batch_size: as in `fedavg`.
      server_optimizer: any optax transform; ``optax.sgd(1.0)`` is FedAvg.
      learning_rate: ``η_l`` of the clients' SGD.

    References:
      Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, Algorithm 1.
    """
    tx = local_sgd(learning_rate)
    return averaging(loss, tx, server_optimizer, local_epochs=local_epochs, batch_size=batch_size)
