"""FedYogi: FedAvg with Yogi on the server."""

import optax

from pflalign_jax.algorithms.fedopt import fedopt
from pflalign_jax.federated import Algorithm, Loss
from pflalign_jax.federated.validation import below_one, nonnegative
from pflalign_jax.models import Model


def fedyogi(
    model: Model,
    learning_rate: float = 0.1,
    *,
    server_learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedYogi: `fedopt` with Yogi on the server.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      server_learning_rate, b1, b2, tau: as in `fedadam`.

    References:
      Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, Algorithm 2. Departure:
      optax's Yogi corrects the bias of the first rounds and starts both moments at 1e-6; the paper
      starts the second at τ².
    """
    nonnegative("fedyogi", server_learning_rate=server_learning_rate, tau=tau)
    below_one("fedyogi", b1=b1, b2=b2)
    return fedopt(
        model,
        learning_rate,
        server_optimizer=optax.yogi(server_learning_rate, b1, b2, tau),
        loss=loss,
        local_optimizer=local_optimizer,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
