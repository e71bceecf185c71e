"""The contract of an algorithm: pure functions over one client; the round engine does the rest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Mean(NamedTuple):
    """A mean that can be merged by adding: ``total / weight``.

    Attributes:
      total: scalar, sum of weighted values.
      weight: scalar, sum of weights.
    """

    total: jax.Array
    weight: jax.Array | float


class ClientData(NamedTuple):
    """One client's training examples, as a window on its device's flat arrays.

    Attributes:
      x: ``[N, ...]`` features as stored, all clients of this device.
      y: ``[N]`` labels, likewise.
      start: int32 scalar, where this client's examples begin.
      size: int32 scalar, how many there are; 0 for padding.
      positions: ``[n_max]`` int32 ``0..n_max-1``, as long as the largest client of the dataset:
        the static bound for this client's dynamic size.
      mean, std: normalisation, ``(x - mean) / std``.
      max_steps: int32 scalar, the most local steps that the client may take; None: no limit.
      client_id: int32 scalar, the client's identity (`FederatedDataset.client_ids`).
      drop_last: bool scalar, whether an epoch leaves out a last batch that is not full; None: no.
    """

    x: jax.Array
    y: jax.Array
    start: jax.Array
    size: jax.Array
    positions: jax.Array
    mean: jax.Array
    std: jax.Array
    max_steps: jax.Array | None = None
    client_id: jax.Array | None = None
    drop_last: jax.Array | None = None


class ClientOutput(NamedTuple):
    """What a client's round yields.

    Attributes:
      message: sent to the server, reduced as a mean weighted by training examples; ``()`` if
        nothing is sent.
      state: the client's next state, same structure, shapes and dtypes as before.
      params: the client's model after its local steps, scored as ``personal / adapted``.
      steps: int32 scalar, local steps taken, to account for work.
      metrics: name to `Mean`, merged over the cohort.
    """

    message: Any
    state: Any
    params: Any
    steps: jax.Array
    metrics: Mapping[str, Mean]


class Gathered(NamedTuple):
    """All messages of a round, in an order that depends on devices; absent rows have weight 0.

    Attributes:
      messages: leaves ``[N, ...]``.
      weights: ``[N]`` float32, training examples; 0 where no client took part.
      ids: ``[N]`` int32, the clients' identities (`FederatedDataset.client_ids`); -1 where no
        client took part.
    """

    messages: Any
    weights: jax.Array
    ids: jax.Array


def _identity(server):
    return server


def _whole(received, client_id):
    del client_id
    return received


class Algorithm(NamedTuple):
    """A federated algorithm as pure functions over **one** client.

    Attributes:
      init: ``params -> (server_state, client_state)``; every client starts from the same state.
      client_update: ``(received, client_state, ClientData, key) -> ClientOutput``; ``received``
        is what ``broadcast`` and ``deliver`` give. Consumes ``key``.
      server_update: ``(server_state, mean_message) -> server_state``.
      personal_params: ``(received, client_state) -> params``, the client's model as it starts a
        round, scored as ``personal / received``.
      global_params: ``broadcast -> params``, scored as ``global``; None where there is no global
        model.
      broadcast: ``server_state -> received``, what every client downloads; by default all of the
        server's state. Keeps server-only state (momentum) off the wire and out of the byte count.
      newcomer: ``broadcast -> client_state``, how a client that never trained starts; None: from
        the state that ``init`` gives a client of the current global model.
      uniform: True: the mean message counts clients equally, not by training examples.
      gather: True: ``server_update`` gets `Gathered` messages instead of their mean. Every device
        then holds all messages of a round: for small cohorts (cross-silo).
      deliver: ``(broadcast, client_id) -> received``, what one client downloads of it, where the
        server has something for each (a head, a cloud model); by default all. ``client_id`` is an
        int32 scalar of `FederatedDataset.client_ids`, also of clients that never trained.
      between_rounds: ``server_state -> server_state``, called on the host after every round, for
        what belongs into no device program, such as SciPy's solvers; new leaves are NumPy arrays.
      predict: ``(params, x) -> logits`` of personal models, where that is not the model's own
        ``apply``, because they have further parts (a gate, a conditional layer).
      takes_weight: True: ``server_update`` gets a third argument, the float32 scalar that the sum
        of messages was divided by; with ``uniform`` that is how many clients answered.
      mean_over: the mean message is the weighted sum over this number, instead of over the sum of
        weights: a fixed one tells nothing about who answered. None: over the sum.
      message_bytes: from the shapes of a message, as the server gets it, to the bytes that are
        sent for it; None: those of the message itself.
    """

    init: Callable[[Any], tuple[Any, Any]]
    client_update: Callable[[Any, Any, ClientData, jax.Array], ClientOutput]
    server_update: Callable[..., Any]
    personal_params: Callable[[Any, Any], Any]
    global_params: Callable[[Any], Any] | None
    broadcast: Callable[[Any], Any] = _identity
    newcomer: Callable[[Any], Any] | None = None
    uniform: bool = False
    gather: bool = False
    deliver: Callable[[Any, jax.Array], Any] = _whole
    between_rounds: Callable[[Any], Any] | None = None
    predict: Callable[[Any, jax.Array], jax.Array] | None = None
    takes_weight: bool = False
    mean_over: float | None = None
    message_bytes: Callable[[Any], int] | None = None
