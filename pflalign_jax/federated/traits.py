"""What an algorithm costs and how it treats clients; told from its functions, without training."""

from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from pflalign_jax.federated.algorithm import Algorithm
from pflalign_jax.federated.federation import Federation
from pflalign_jax.federated.message_size import num_bytes


class Traits(NamedTuple):
    """What one can choose an algorithm by.

    Attributes:
      up, down: bytes that a client sends and receives in a round.
      kept: bytes that a client keeps between rounds.
      cross_silo: whether it is made for few clients: every device holds all messages of a round, or
        the server keeps something for each client.
      absent: what happens to a client that leaves a round out: ``"nothing"`` is kept of it, its
        ``"own state"`` waits for it, or its ``"row of the server"`` does.
      newcomer: what a client that never trained starts from: the ``"global model"``; ``"what it
        receives"``, with the first weights of what clients keep; the ``"mean of rows"`` that the
        server keeps for others; what it makes of its ``"own data"``; the ``"first weights"`` alone.
    """

    up: int
    down: int
    kept: int
    cross_silo: bool
    absent: str
    newcomer: str


def traits(federation: Federation) -> Traits:
    """Return the traits of a federation's algorithm, with its model."""
    algorithm, cohort = federation.algorithm, federation.cohort_size
    sent, kept = federation.bytes_per_round, num_bytes(federation.shapes.client)
    has_rows = algorithm.deliver is not Algorithm._field_defaults["deliver"]
    if has_rows:
        absent = "row of the server"
    else:
        absent = "own state" if kept else "nothing"
    return Traits(
        up=sent.up // cohort,
        down=sent.down // cohort,
        kept=kept,
        cross_silo=has_rows or algorithm.aggregation.gathered,
        absent=absent,
        newcomer=_newcomer(algorithm, federation.shapes.server, has_rows, sent.down > 0),
    )


def _newcomer(algorithm: Algorithm, server: Any, has_rows: bool, receives: bool) -> str:
    if _looks_at_data(algorithm, server):
        return "own data"
    if has_rows:
        return "mean of rows"
    if algorithm.global_params is not None:
        return "global model"
    return "what it receives" if receives else "first weights"


class _LookedAt(Exception):
    """A signal and no error: a client's data were asked for."""


class _Data:
    """A client's data that nobody may look at."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _LookedAt(name)


def _looks_at_data(algorithm: Algorithm, server: Any) -> bool:
    """Tell whether a client that never trained starts from its data, by the server's shapes."""
    newcomer = algorithm.newcomer
    if newcomer is None:
        return False

    def start(server: Any) -> Any:
        received = algorithm.deliver(algorithm.broadcast(server), jnp.int32(0))
        return newcomer(received, _Data())  # type: ignore[arg-type]

    try:
        jax.eval_shape(start, server)
    except _LookedAt:
        return True
    return False
