"""Federated averaging of a part of the model; the rest stays as it was drawn, the same for all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    combine_params,
    local_training,
    partition_params,
)


class ServerState(NamedTuple):
    """The part that is trained, and the one that never changes."""

    trained: Any
    fixed: Any


def partly_fixed(
    loss: Loss,
    tx: optax.GradientTransformation,
    fixed_mask: Callable[[Any], Any],
    *,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return federated averaging of a part of the model; the rest stays as it was drawn.

    The fixed part is counted as downloaded in every round, and never as sent.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      tx: the local optimiser, elementwise, new in every round.
      fixed_mask: from parameters to a tree of bools, True for what is not trained.
      local_epochs, batch_size: as in `fedavg`.
    """

    def init(params, key):
        fixed, trained = partition_params(params, fixed_mask(params))
        return ServerState(trained, fixed), ()

    def whole(server):
        return combine_params(server.fixed, server.trained)

    def client_update(server, client, data, key):
        def loss_of_part(trained, batch, key):
            # The rest is no argument, so no optimiser ever touches it.
            return loss(combine_params(server.fixed, trained), batch, key)

        local = local_training(loss_of_part, tx, local_epochs, batch_size, elementwise=True)
        result = local.train(server.trained, tx.init(server.trained), data, key)
        message = optax.tree.sub(result.params, server.trained)
        params = combine_params(server.fixed, result.params)
        return ClientOutput(message, client, params, result.steps, result.metrics)

    def server_update(server, aggregate):
        return server._replace(trained=optax.tree.add(server.trained, aggregate.value))

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: whole(server),
        global_params=whole,
    )
