"""FedAvg; scored after local adaptation it is fine-tuned FedAvg, a strong baseline."""

from typing import Any, NamedTuple

import optax

from pflalign_jax.federated import Algorithm, ClientOutput, local_sgd, local_training


class ServerState(NamedTuple):
    """The global model ``w``."""

    params: Any


def fedavg(
    loss, learning_rate: float = 0.1, *, local_epochs: int = 1, batch_size: int = 10
) -> Algorithm:
    """Return FedAvg.

    A round of one client: T steps of SGD from the global model, ``w_i -= η g``; the message is
    ``w_i - w``. The server: ``w += Σ p_i (w_i - w)``, weighted by training examples. A client's
    personal model is the global one; ``personal / adapted`` scores it after the local steps.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      learning_rate: ``η`` of SGD.
      local_epochs, batch_size: local work per round.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
      Data", AISTATS 2017, Algorithm 1.
    """
    tx = local_sgd(learning_rate)
    local = local_training(
        loss, tx, local_epochs=local_epochs, batch_size=batch_size, elementwise=True
    )

    def client_update(server, client, data, key):
        result = local.train(server.params, tx.init(server.params), data, key)
        delta = optax.tree.sub(result.params, server.params)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    def server_update(server, mean_delta):
        return ServerState(optax.apply_updates(server.params, mean_delta))

    return Algorithm(
        init=lambda params: (ServerState(params), ()),
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client: server.params,
        global_params=lambda server: server.params,
    )
