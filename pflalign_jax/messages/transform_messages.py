"""An algorithm whose messages are transformed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated import Algorithm, ClientData, ClientOutput, message_shapes
from pflalign_jax.messages.transform import MessageTransform, transformed_bytes
from pflalign_jax.random_purposes import MESSAGE


class ClientState(NamedTuple):
    """The algorithm's own client state, and the state of the transform."""

    own: Any
    memory: Any


def transform_messages(
    algorithm: Algorithm, transform: MessageTransform, dataset: FederatedDataset
) -> Algorithm:
    """Return the algorithm with every client's message transformed before it is sent.

    Only messages change. What a method keeps on the client stays exact.

    Args:
      algorithm: any; its messages have float32 leaves.
      transform: e.g. ``chain(clip(1.0), top_k(0.01))``.
      dataset: the dataset that will be federated, for the shapes of messages.

    Raises:
      ValueError: from ``init`` if a message has leaves that are not float32.
    """

    def first_received(server: Any) -> Any:
        # Any client's will do: shapes are the same for all.
        return algorithm.deliver(algorithm.broadcast(server), dataset.client_ids[0])

    def memory(received: Any, client: Any) -> Any:
        shapes = message_shapes(algorithm, received, client, dataset)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            if leaf.dtype != jnp.float32:
                raise ValueError(
                    f"message{jax.tree_util.keystr(path)} is {leaf.dtype}; transforms of messages "
                    "need float32"
                )
        return transform.init(shapes)

    def init(params: Any, key: jax.Array, **values: Any) -> tuple[Any, ClientState]:
        server, client = algorithm.init(params, key, **values)
        return server, ClientState(client, memory(first_received(server), client))

    def client_update(
        received: Any, client: ClientState, data: ClientData, key: jax.Array
    ) -> ClientOutput:
        output = algorithm.client_update(received, client.own, data, key)
        # A key below the client's that training does not use.
        message, kept = transform.update(
            output.message, client.memory, jax.random.fold_in(key, MESSAGE)
        )
        return output._replace(message=message, state=ClientState(output.state, kept))

    def newcomer(received: Any, data: ClientData) -> ClientState:
        assert algorithm.newcomer is not None
        client = algorithm.newcomer(received, data)
        return ClientState(client, memory(received, client))

    def personal_params(received: Any, client: ClientState, data: ClientData) -> Any:
        return algorithm.personal_params(received, client.own, data)

    def fisher(client: ClientState, data: ClientData) -> Any:
        assert algorithm.fisher is not None
        return algorithm.fisher(client.own, data)

    return algorithm._replace(
        init=init,
        client_update=client_update,
        personal_params=personal_params,
        newcomer=algorithm.newcomer and newcomer,
        fisher=algorithm.fisher and fisher,
        aggregation=algorithm.aggregation._replace(
            message_bytes=lambda shapes: transformed_bytes(transform, shapes)
        ),
    )
