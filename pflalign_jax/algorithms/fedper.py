"""FedPer: a shared body, a head that stays with every client."""

from collections.abc import Sequence

from pflalign_jax.algorithms.partly_local import partly_local
from pflalign_jax.federated import Algorithm, Loss, local_sgd, part_mask


def fedper(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str],
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedPer.

    A client joins the received body and its own head, takes T steps of SGD on both, keeps the
    head and sends what the body has moved. The server averages bodies as FedAvg does models. With
    an empty head it is FedAvg.

    Args:
      loss, learning_rate, local_epochs, batch_size: as in `fedavg`.
      head: names of the layers that stay local, see `pflalign_jax.federated.part_mask`.

    References:
      Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv:1912.00818,
      Algorithm 1. Departure: all heads start equal, as in PFLlib; there each is drawn at random.
    """
    tx = local_sgd(learning_rate)
    return partly_local(
        loss, tx, lambda p: part_mask(p, head), local_epochs=local_epochs, batch_size=batch_size
    )
