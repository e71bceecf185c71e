"""FedAvg; scored after local adaptation it is fine-tuned FedAvg, a strong baseline."""

from typing import Any, NamedTuple

import optax

from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_sgd, local_training


class ServerState(NamedTuple):
    """The global model ``w``, and the state of the server's optimiser, which is never sent."""

    params: Any
    opt_state: Any = ()


def fedavg(
    loss: Loss, learning_rate: float = 0.1, *, local_epochs: int = 1, batch_size: int = 10
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
    return averaging(
        loss, local_sgd(learning_rate), local_epochs=local_epochs, batch_size=batch_size
    )


def averaging(
    loss: Loss,
    tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation | None = None,
    *,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return federated averaging with any local and any server optimiser.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      tx: the local optimiser, elementwise, new in every round; its ``update`` gets the global
        model as ``centre``.
      server_tx: takes minus the mean of ``w_i - w`` for its gradient; None adds the mean.
      local_epochs, batch_size: local work per round.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def init(params):
        return ServerState(params, () if server_tx is None else server_tx.init(params)), ()

    def client_update(server, client, data, key):
        w = server.params
        result = local.train(w, tx.init(w), data, key, centre=w)
        delta = optax.tree.sub(result.params, w)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    def server_update(server, mean_delta):
        if server_tx is None:
            return ServerState(optax.apply_updates(server.params, mean_delta))
        gradient = optax.tree.scale(-1, mean_delta)
        updates, opt_state = server_tx.update(gradient, server.opt_state, server.params)
        return ServerState(optax.apply_updates(server.params, updates), opt_state)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client: server.params,
        global_params=lambda server: server.params,
        broadcast=lambda server: ServerState(server.params),
    )
