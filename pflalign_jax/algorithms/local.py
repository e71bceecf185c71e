"""Local training only: no communication, the baseline that federated learning must beat."""

from typing import Any, NamedTuple

from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_sgd, local_training


class ClientState(NamedTuple):
    """The client's own model."""

    params: Any


def local(
    loss: Loss, learning_rate: float = 0.1, *, local_epochs: int = 1, batch_size: int = 10
) -> Algorithm:
    """Return local training: every client runs SGD on its own data, all from the same start.

    Nothing is sent, there is no global model; ``personal / received`` and ``personal / adapted``
    are the client's model before and after a round's steps.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      learning_rate: of SGD.
      local_epochs, batch_size: local work per round.
    """
    tx = local_sgd(learning_rate)
    training = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(received, client, data, key):
        del received
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
