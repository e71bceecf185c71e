"""What a federation is: its state, what a round tells, and the functions of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pflalign_jax.federated.metrics import ClientScores
from pflalign_jax.federated.round_program import Counts, Work
from pflalign_jax.federated.snapshot import Snapshot


class FederationState(NamedTuple):
    """Everything that changes from round to round.

    Attributes:
      key: the run's key; never changes, draws are folded in.
      round: int32 scalar, rounds done.
      server: the algorithm's server state, on every device.
      clients: the algorithm's client states, leaves ``[D, R, ...]``, each client's on its own
        device; ``()`` if they live in a store, which then moves on with every round.
    """

    key: jax.Array
    round: jax.Array
    server: Any
    clients: Any


class RoundResult(NamedTuple):
    """What is known after a round.

    Attributes:
      cohort: ``[n]`` int, positions of the clients that took part; C of them, or fewer where not
        everybody answers.
      invited: how many clients were sent the model.
      metrics: name to scalar array, means over the cohort, e.g. ``loss`` in training (nats); NaN if
        nobody took part.
      work: what the round cost in local steps.
      counts: how many answers are in the mean, and how many were left out.
      adapted: name ``split/personal/adapted`` to `ClientScores` of the cohort's models after
        their local steps; empty unless asked for. Clients outside the cohort have no examples.
      nonfinite: ``() -> [m] int``, positions of the clients that were left out because something of
        theirs was not finite; waits for the round.
    """

    cohort: np.ndarray
    invited: int
    metrics: Mapping[str, jax.Array]
    work: Work
    counts: Counts
    adapted: Mapping[str, ClientScores]
    nonfinite: Callable[[], np.ndarray]


class Federation(NamedTuple):
    """A simulated federation as functions; see `federate`.

    Attributes:
      init: ``(key, **values) -> FederationState``; ``values`` are other values for
        hyperparameters that `inject_hyperparams` has put into the state.
      run_round: ``(state, score=False) -> (state, RoundResult)``; the given state's buffers are
        donated, use the returned one. ``score=True`` also scores the cohort's local models.
      run_rounds: ``(states, score=False) -> [(state, RoundResult)]``, the same for S states of
        runs that differ in their keys, as one vmapped program; states on devices only.
      evaluate: ``(state, adapt=True) -> {name: ClientScores}`` for all clients; changes nothing.
        ``adapt=True`` trains every client from the current global model, scores it and throws
        the result away.
      evaluate_new: ``(state, adapt=True) -> {name: ClientScores}`` for the dataset's new clients:
        names begin with ``new_clients``, the received model is the one a newcomer starts with
        (zero steps), the adapted one has had ``new_client_steps``.
      save: ``state -> Snapshot``, arrays that a checkpoint can hold.
      restore: ``(Snapshot, held=()) -> FederationState``, also on other devices than before;
        ``held`` are earlier rounds that client states on disk are still held for.
      hold: ``rounds -> None``: client states on disk, which move on with every round, keep those
        after these rounds, each the last one or one held before; others are let go.
      shapes: ``(server, client)``, the shapes of the server's and of one client's state.
      client_state: ``(state, k) -> client state`` of the client at position ``k``.
      personal_params: ``(state, k) -> params``, the model that client ``k`` starts a round with.
      lower_round: ``state -> jax.stages.Lowered``, the round's program, to look at before or
        after compilation.
      bytes_per_round: ``(up, down)``, message and broadcast bytes of a round with C clients; of
        compressed messages what is really sent.
      cohort_size: C.
      everyone: whether all clients take part in every round, for sure.
      client_chunk: clients vmapped at a time on each device.
      client_state_in: where client states live, ``"device"``, ``"host"`` or ``"disk"``.
      mesh: the devices.
    """

    init: Callable[[jax.Array], FederationState]
    run_round: Callable[..., tuple[FederationState, RoundResult]]
    run_rounds: Callable[..., list[tuple[FederationState, RoundResult]]]
    evaluate: Callable[..., dict[str, ClientScores]]
    evaluate_new: Callable[..., dict[str, ClientScores]]
    save: Callable[[FederationState], Snapshot]
    restore: Callable[..., FederationState]
    hold: Callable[[Iterable[int]], None]
    shapes: tuple[Any, Any]
    client_state: Callable[[FederationState, int], Any]
    personal_params: Callable[[FederationState, int], Any]
    lower_round: Callable[[FederationState], jax.stages.Lowered]
    bytes_per_round: tuple[int, int]
    cohort_size: int
    everyone: bool
    client_chunk: int
    client_state_in: str
    mesh: Mesh
