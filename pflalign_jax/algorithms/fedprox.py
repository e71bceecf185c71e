"""FedProx: FedAvg whose local steps are pulled back to the global model."""

import optax

from pflalign_jax.algorithms.averaging import averaging
from pflalign_jax.federated import Algorithm, Loss, local_tx, proximal
from pflalign_jax.models import Model, cross_entropy


def fedprox(
    model: Model,
    learning_rate: float = 0.1,
    *,
    mu: float = 0.01,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedProx.

    A client descends on ``F_i(w_i) + μ/2 ‖w_i - w‖²``: ``w_i -= η (g + μ (w_i - w))``. The server
    averages as FedAvg does. μ = 0 is FedAvg.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      mu: ``μ`` >= 0, the pull to the global model; the paper tries 0.001, 0.01, 0.1 and 1.

    References:
      Li et al., "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127, Algorithm 2.
      Departure: the mean is weighted by examples with uniformly drawn clients (there the draw is
      weighted and the mean is not); all clients finish their steps.
    """
    tx = optax.chain(proximal(mu), local_tx(learning_rate, local_optimizer))
    loss = loss or cross_entropy(model)
    return averaging(loss, tx, local_epochs=local_epochs, batch_size=batch_size)
