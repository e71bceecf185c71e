"""FedOpt: FedAvg with an optimiser on the server (FedAvgM, FedAdam, FedYogi, any optax one)."""

import optax

from pflalign_jax.algorithms.fedavg import averaging
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
      loss: ``(params, Batch, key) -> scalar``.
      server_optimizer: any optax transform; ``optax.sgd(1.0)`` is FedAvg.
      learning_rate: ``η_l`` of the clients' SGD.
      local_epochs, batch_size: local work per round.

    References:
      Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, Algorithm 1.
    """
    tx = local_sgd(learning_rate)
    return averaging(loss, tx, server_optimizer, local_epochs=local_epochs, batch_size=batch_size)


def fedavgm(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    server_learning_rate: float = 1.0,
    momentum: float = 0.9,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAvgM: `fedopt` with heavy-ball momentum on the server.

    References:
      Hsu, Qi and Brown, arXiv:1909.06335, section 4.
    """
    server = optax.sgd(server_learning_rate, momentum=momentum)
    return fedopt(loss, server, learning_rate, local_epochs=local_epochs, batch_size=batch_size)


def fedadam(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    server_learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAdam: `fedopt` with Adam on the server, ``τ`` added to its denominator.

    References:
      Reddi et al., arXiv:2003.00295, Algorithm 2. Departure: optax's Adam corrects the bias of
      the first rounds; the paper starts its second moment at τ² instead.
    """
    server = optax.adam(server_learning_rate, b1, b2, tau)
    return fedopt(loss, server, learning_rate, local_epochs=local_epochs, batch_size=batch_size)


def fedyogi(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    server_learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedYogi: `fedopt` with Yogi on the server.

    References:
      Reddi et al., arXiv:2003.00295, Algorithm 2. Departure: optax's Yogi corrects the bias of
      the first rounds and starts both moments at 1e-6; the paper starts the second at τ².
    """
    server = optax.yogi(server_learning_rate, b1, b2, tau)
    return fedopt(loss, server, learning_rate, local_epochs=local_epochs, batch_size=batch_size)
