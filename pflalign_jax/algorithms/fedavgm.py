"""FedAvgM: FedAvg with momentum on the server."""

import optax

from pflalign_jax.algorithms.fedopt import fedopt
from pflalign_jax.federated import Algorithm, Loss
from pflalign_jax.federated.validation import below_one, nonnegative


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

    Args:
      loss, learning_rate, local_epochs, batch_size: as in `fedavg`.
      server_learning_rate: of the server.
      momentum: ``β``; the paper searches 0 to 0.997.

    References:
      Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
      Visual Classification", arXiv:1909.06335, section 4: the plain momentum of its
      equation; departure: its experiments take Nesterov's.
    """
    nonnegative("fedavgm", server_learning_rate=server_learning_rate)
    below_one("fedavgm", momentum=momentum)
    server = optax.sgd(server_learning_rate, momentum=momentum)
    return fedopt(loss, server, learning_rate, local_epochs=local_epochs, batch_size=batch_size)
