"""The contract of an algorithm: pure functions over one client; the round engine does the rest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


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
      message: sent to the server, which is given the aggregate of a round's messages (see
        `Aggregation`); ``()`` if nothing is sent.
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

    @property
    def shares(self) -> jax.Array:
        """``[N]``, the weights scaled to the sum 1; 0 if nobody took part."""
        return self.weights / jnp.maximum(self.weights.sum(), 1)


class Aggregate(NamedTuple):
    """What the server is given of a round's messages.

    Attributes:
      value: the mean message, in the messages' dtypes; with `GATHERED` a `Gathered` of all.
      weight: float32 scalar, what the weighted sum was divided by: training examples, the number of
        clients that answered, or the fixed number of `mean_over`.
    """

    value: Any
    weight: jax.Array


class Aggregation(NamedTuple):
    """How the messages of a round become the `Aggregate` that the server is given.

    Use `MEAN_BY_EXAMPLES`, `MEAN_BY_CLIENTS`, `GATHERED` or `mean_over`.

    Attributes:
      weights: what a client counts by, ``"examples"`` (its training examples) or ``"clients"`` (1).
      divide_by: a fixed number that the weighted sum is divided by, which tells nothing about who
        answered; None: the sum of the weights.
      gathered: True: no mean; the server is given all messages. Every device then holds all of a
        round: for small cohorts (cross-silo).
      message_bytes: from the shapes of a message, as the server gets it, to the bytes that are
        really sent for it; None: those of the message itself.
    """

    weights: str = "examples"
    divide_by: float | None = None
    gathered: bool = False
    message_bytes: Callable[[Any], int] | None = None


MEAN_BY_EXAMPLES = Aggregation()
"""The mean message, clients weighted by their training examples, as in FedAvg."""

MEAN_BY_CLIENTS = Aggregation(weights="clients")
"""The mean message, clients counted equally."""

GATHERED = Aggregation(gathered=True)
"""All messages of a round, as `Gathered`."""


def mean_over(number: float) -> Aggregation:
    """Return the sum of the messages, clients counted equally, divided by a fixed number."""
    return Aggregation(weights="clients", divide_by=float(number))


def _identity(server):
    return server


def _whole(received, client_id):
    del client_id
    return received


class Algorithm(NamedTuple):
    """A federated algorithm as pure functions over **one** client.

    ``received`` below is what one client has downloaded: the result of ``broadcast`` and then
    ``deliver``. ``data`` is the client's `ClientData`.

    Attributes:
      init: ``(params, key) -> (server_state, client_state)`` for the first model; ``key`` is for
        whatever else is drawn at random. Every client starts from the same state.
      client_update: ``(received, client_state, data, key) -> ClientOutput``, a client's round.
      server_update: ``(server_state, Aggregate) -> server_state``.
      personal_params: ``(received, client_state, data) -> params``, the client's model as it starts
        a round, scored as ``personal / received``.
      global_params: ``broadcast -> params``, scored as ``global``; None if there is no global
        model.
      aggregation: how messages become the server's `Aggregate`.
      broadcast: ``server_state -> broadcast``, what clients download; by default all of it. Keeps
        what only the server needs (momentum) off the wire and out of the byte count.
      deliver: ``(broadcast, client_id) -> received``, what one client downloads of it, where the
        server has something for each (a head, a cloud model); by default all. ``client_id`` is an
        int32 scalar of `FederatedDataset.client_ids`, also of clients that never trained.
      newcomer: ``(received, data) -> client_state``, how a client that never trained starts; None:
        from the state that ``init`` gives a client of the current global model.
      between_rounds: ``server_state -> server_state``, called on the host after every round, for
        what belongs into no device program, such as SciPy's solvers; new leaves are NumPy arrays.
      predict: ``(params, x) -> logits`` of personal models, where that is not the model's own
        ``apply``, because they have further parts (a gate, a conditional layer).
      classes_only: the method's name, if it works with classes (prototypes, balanced softmax, a
        cross-entropy of its own) and so for no task but a classification; None: for every task.
      adapts_with: the name of the hyperparameter that is the step size of ``ClientOutput.params``,
        by which an evaluation may adapt with another one than training.
      fisher: ``(client_state, data) -> tree`` like the client's params, an estimate >= 0 of the
        diagonal of the Fisher information of one example there, after a round; None: the method
        keeps nothing that it could be made of.
    """

    init: Callable[[Any, jax.Array], tuple[Any, Any]]
    client_update: Callable[[Any, Any, ClientData, jax.Array], ClientOutput]
    server_update: Callable[[Any, Aggregate], Any]
    personal_params: Callable[[Any, Any, ClientData], Any]
    global_params: Callable[[Any], Any] | None
    aggregation: Aggregation = MEAN_BY_EXAMPLES
    broadcast: Callable[[Any], Any] = _identity
    deliver: Callable[[Any, jax.Array], Any] = _whole
    newcomer: Callable[[Any, ClientData], Any] | None = None
    between_rounds: Callable[[Any], Any] | None = None
    predict: Callable[[Any, jax.Array], jax.Array] | None = None
    classes_only: str | None = None
    adapts_with: str = "learning_rate"
    fisher: Callable[[Any, ClientData], Any] | None = None
