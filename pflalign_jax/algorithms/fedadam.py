"""FedAdam: FedAvg with Adam on the server."""

import optax

from pflalign_jax.algorithms.fedopt import fedopt
from pflalign_jax.federated import Algorithm, Loss
from pflalign_jax.federated.validation import below_one, nonnegative
from pflalign_jax.models import Model


def fedadam(
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
    """Return FedAdam: `fedopt` with Adam on the server, ``τ`` added to its denominator.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      server_learning_rate: ``η``, the step size of the server; the paper tries 0.001 to 1.
      b1: decay of the first moment; the paper takes 0.9.
      b2: decay of the second moment; the paper takes 0.99.
      tau: ``τ``, added to the denominator; the paper takes 0.001.

    References:
      Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, Algorithm 2. Departure:
      optax's Adam corrects the bias of the first rounds; the paper starts its second moment at τ²
      instead.
    """
    nonnegative("fedadam", server_learning_rate=server_learning_rate, tau=tau)
    below_one("fedadam", b1=b1, b2=b2)
    return fedopt(
        model,
        learning_rate,
        server_optimizer=optax.adam(server_learning_rate, b1, b2, tau),
        loss=loss,
        local_optimizer=local_optimizer,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
