"""Local training only: no communication, the baseline that federated learning must beat."""

from typing import Any, NamedTuple

from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_training, local_tx
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The client's own model."""

    params: Any


def local(
    model: Model,
    learning_rate: float = 0.1,
    *,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return local training: every client runs SGD on its own data, all from the same start.

    Nothing is sent, there is no global model; ``personal / received`` and ``personal / adapted``
    are the client's model before and after a round's steps.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
    """
    tx = local_tx(learning_rate, local_optimizer)
    loss = loss or cross_entropy(model)
    training = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(received, client, data, key):
        result = training.train(client.params, tx.init(client.params), data, key)
        state = ClientState(result.params)
        return ClientOutput((), state, result.params, result.steps, result.metrics)

    return Algorithm(
        init=lambda params, key: ((), ClientState(params)),
        client_update=client_update,
        server_update=lambda server, aggregate: server,
        personal_params=lambda received, client, data: client.params,
        global_params=None,
    )
