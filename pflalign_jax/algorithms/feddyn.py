"""FedDyn: dynamic regularisation that makes local optima agree with the global one."""

import optax

from pflalign_jax.algorithms.scaffold import ClientState, ServerState
from pflalign_jax.federated import (
    MEAN_BY_CLIENTS,
    Algorithm,
    ClientOutput,
    Loss,
    add_drift,
    local_training,
    local_tx,
    proximal,
)
from pflalign_jax.federated.validation import positive
from pflalign_jax.models import Model, cross_entropy


def feddyn(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    alpha: float = 0.01,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedDyn.

    A client descends on ``F_i(w_i) - <h_i, w_i> + α/2 ‖w_i - w‖²`` from ``w``, then
    ``h_i -= α (w_i - w)``; the message is ``w_i - w``. The server, clients counted equally:
    ``h -= α Σ (w_i - w) / K``, which is never sent, ``w = mean(w_i) - h / α``. States keep h_i and
    h in the place of SCAFFOLD's control variates.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients.
      alpha: ``α`` > 0, the pull to the global model; the paper tries 0.1, 0.01 and 0.001.

    References:
      Acar et al., "Federated Learning Based on Dynamic Regularization", arXiv:2111.04263,
      Algorithm 1. Departure: a client takes T steps of SGD instead of minimising exactly, as in
      the authors' code, which scores the mean of the clients' last models, scales α by a client's
      examples, and has weight decay and clipping. ``personal / adapted`` is scored after these
      steps: it is not fine-tuned.
    """
    positive("feddyn", alpha=alpha, num_clients=num_clients)
    tx = optax.chain(proximal(alpha), add_drift(), local_tx(learning_rate, local_optimizer))
    loss = loss or cross_entropy(model)
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def init(params, key):
        zeros = optax.tree.zeros_like(params)
        return ServerState(params, zeros), ClientState(zeros)

    def client_update(server, client, data, key):
        # The gradient of -<h_i, w_i> is -h_i.
        w, drift = server.params, optax.tree.scale(-1, client.control)
        result = local.train(w, tx.init(w), data, key, centre=w, drift=drift)
        delta = optax.tree.sub(result.params, w)
        state = ClientState(optax.tree.add_scale(client.control, -alpha, delta))
        return ClientOutput(delta, state, result.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        # h sums over all K clients; those that did not answer have not moved.
        delta, answered = aggregate.value, aggregate.weight
        h = optax.tree.add_scale(server.control, -alpha * answered / num_clients, delta)
        mean = optax.tree.add(server.params, delta)
        return ServerState(optax.tree.add_scale(mean, -1 / alpha, h), h)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: server.params,
        global_params=lambda server: server.params,
        # Only the server needs h.
        broadcast=lambda server: ServerState(server.params, ()),
        aggregation=MEAN_BY_CLIENTS,
    )
