"""FedAvgM: FedAvg with momentum on the server."""

import optax

from pflalign_jax.algorithms.fedopt import fedopt
from pflalign_jax.federated import Algorithm, Loss
from pflalign_jax.federated.validation import below_one, nonnegative
from pflalign_jax.models import Model


def fedavgm(
    model: Model,
    learning_rate: float = 0.1,
    *,
    server_learning_rate: float = 1.0,
    momentum: float = 0.9,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAvgM: `fedopt` with heavy-ball momentum on the server.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      server_learning_rate: step size of the server; the paper takes 1.
      momentum: ``β``, the server's momentum; the paper searches 0 to 0.997.

    References:
      Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
      Visual Classification", arXiv:1909.06335, section 4: the plain momentum of its
      equation; departure: its experiments take Nesterov's.
    """
    nonnegative("fedavgm", server_learning_rate=server_learning_rate)
    below_one("fedavgm", momentum=momentum)
    return fedopt(
        model,
        learning_rate,
        server_optimizer=optax.sgd(server_learning_rate, momentum=momentum),
        loss=loss,
        local_optimizer=local_optimizer,
        local_epochs=local_epochs,
        batch_size=batch_size,
    )
