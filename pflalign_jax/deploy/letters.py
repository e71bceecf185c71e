"""The server's stages of a round: the simulation's program, on messages that have arrived.

The round's program is given the letters of clients for their states, and "training" is to open
them. So the mean, its weights, clipping on the server, robust rules, noise and what is counted are
the same code as in a simulation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Algorithm, ClientData, ClientOutput
from pflalign_jax.federated.client_states import StagedClients
from pflalign_jax.federated.device_program import Visits
from pflalign_jax.federated.sharding import Block, PlacedData, put_replicated, put_sharded


class Letter(NamedTuple):
    """What a client sent.

    Attributes:
      message, metrics: as in `ClientOutput`.
      steps: int32 scalar, local steps taken.
    """

    message: Any
    metrics: Any
    steps: Any


def echoing(algorithm: Algorithm) -> Algorithm:
    """Return an algorithm whose clients send what is in their letters, which are their states."""

    def client_update(received: Any, letter: Letter, data: ClientData, key: Any) -> ClientOutput:
        del received, data, key
        # A client whose state is not finite is left out; of metrics only the loss decides that.
        state = letter._replace(metrics=jax.tree.map(jnp.zeros_like, letter.metrics))
        return ClientOutput(letter.message, state, (), letter.steps, letter.metrics)

    return algorithm._replace(client_update=client_update)


def lost_letter(shapes: Letter) -> Letter:
    """Return the letter of a client that told that its update is not finite."""

    def lost(a: Any) -> np.ndarray:
        fill = np.nan if np.issubdtype(a.dtype, np.inexact) else 0
        return np.full(a.shape, fill, a.dtype)

    return jax.tree.map(lost, shapes)


def staged_letters(
    letters: dict[int, Letter], shapes: Letter, room: int, dataset: FederatedDataset, mesh: Mesh
) -> StagedClients:
    """Return letters on one device, as the round's program takes clients.

    Args:
      letters: by the client's position.
      shapes: of a letter.
      room: the most letters; the program is compiled for so many.
      dataset: of all clients; its examples are not looked at.
      mesh: of one device.
    """
    sizes = dataset.splits["train"].sizes
    # Largest first, as a simulation visits them: sums are in the same order.
    order = np.array(sorted(letters), np.int64)
    order = order[np.argsort(-sizes[order], kind="stable")]
    spare = room - len(order)

    def stacked(shape: Any, *rows: Any) -> np.ndarray:
        return np.stack([*map(np.asarray, rows), *[np.zeros(shape.shape, shape.dtype)] * spare])[
            None
        ]

    states = jax.tree.map(stacked, shapes, *(letters[k] for k in order))

    def row(values: np.ndarray, fill: int) -> np.ndarray:
        return np.concatenate([values, np.full(spare, fill)]).astype(np.int32)[None]

    nothing = np.zeros((1, room), np.int32)
    x, y = (np.zeros((1, 1, *a.shape[1:]), a.dtype) for a in (dataset.x, dataset.y))
    size, ids = row(sizes[order], 0), row(dataset.client_ids[order], -1)
    train = put_sharded(Block(x, y, nothing, size), mesh)  # type: ignore[arg-type]
    mean, std = (np.asarray(a, np.float32) for a in (dataset.mean, dataset.std))
    positions, mean, std = put_replicated((np.zeros(1, np.int32), mean, std), mesh)
    data = PlacedData({"train": train}, put_sharded(ids, mesh), positions, mean, std)
    rows = np.where(row(np.ones_like(order), 0) > 0, np.arange(room, dtype=np.int32), room)
    visits = Visits(rows.astype(np.int32), np.array([len(order)], np.int32))  # type: ignore[arg-type]
    return StagedClients(
        put_sharded(states, mesh),
        data,
        put_sharded(visits, mesh),
        positions=order,
        device=np.zeros(len(order), np.int64),
        row=np.arange(len(order)),
    )
