"""A federation: its state, its rounds, and scores by client; made by `federate`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.datasets.features import input_dtype
from pflalign_jax.federated.algorithm import Algorithm
from pflalign_jax.federated.client_models import STAGES, gather_models, models_program
from pflalign_jax.federated.client_states import ClientStates, StagedClients, StatesOnDevices
from pflalign_jax.federated.cohort_visit import Counts
from pflalign_jax.federated.device_program import ProgramOptions, training_data
from pflalign_jax.federated.eval_program import eval_program
from pflalign_jax.federated.inject_hyperparams import hyperparams_of
from pflalign_jax.federated.message_size import message_shapes, num_bytes, sent_bytes
from pflalign_jax.federated.metrics import ClientScores, named_scores, on_host
from pflalign_jax.federated.participation import Participation, Turnout
from pflalign_jax.federated.round_program import RoundOutput, Work, round_programs
from pflalign_jax.federated.sharding import REPLICATED, put_replicated
from pflalign_jax.federated.snapshot import Snapshot
from pflalign_jax.models import Model
from pflalign_jax.models.frozen import as_argument, weights_of
from pflalign_jax.random_purposes import COHORT, INIT, STATES
from pflalign_jax.tasks import Task


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


class StateShapes(NamedTuple):
    """The shapes of the server's and of one client's state."""

    server: Any
    client: Any


class RoundBytes(NamedTuple):
    """Bytes of a round with C clients: messages up (as sent, compressed), broadcasts down."""

    up: int
    down: int


# Not compared by value: two federations are equal only if they are one.
@dataclasses.dataclass(frozen=True, eq=False)
class Federation:
    """A simulated federation; made by `federate`.

    Attributes:
      algorithm, model, dataset, participation, mesh: as given to `federate`.
      task: as given, or as inferred from the data.
      cohort_size: C.
      client_chunk: clients vmapped at a time on each device.
      client_state_in: where client states live, ``"device"``, ``"host"`` or ``"disk"``.
      new_client_steps: the most local steps of a new client; None: as many as in a round.
    """

    algorithm: Algorithm
    model: Model
    dataset: FederatedDataset
    participation: Participation
    mesh: Mesh
    task: Task
    cohort_size: int
    client_chunk: int
    client_state_in: str
    new_client_steps: int | None
    _options: ProgramOptions
    _client_states: ClientStates
    # The cohorts of this round and the next, by the run's key and the round.
    _drawn: dict[tuple[bytes, int], Turnout] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def everyone(self) -> bool:
        """Whether all clients take part in every round, for sure."""
        return self.participation.sure and self.cohort_size == self.dataset.num_clients

    @functools.cached_property
    def shapes(self) -> StateShapes:
        """The shapes of the server's and of one client's state."""
        return StateShapes(*jax.eval_shape(self._first_states, jax.random.key(0), {}))

    @functools.cached_property
    def bytes_per_round(self) -> RoundBytes:
        """Message and broadcast bytes of a round with C clients."""

        def downloaded(server):
            algorithm, first_id = self.algorithm, self.dataset.client_ids[0]
            return algorithm.deliver(algorithm.broadcast(server), first_id)

        received = jax.eval_shape(downloaded, self.shapes.server)
        message = message_shapes(self.algorithm, received, self.shapes.client, self.dataset)
        # Hyperparameters that a search has put into the state are not sent.
        down = num_bytes(received) - num_bytes(hyperparams_of(received))
        up = sent_bytes(self.algorithm.aggregation, message)
        return RoundBytes(self.cohort_size * up, self.cohort_size * down)

    # States

    def init(self, key: jax.Array, **values: float) -> FederationState:
        """Return the state before the first round.

        Args:
          key: the run's; every random draw comes from it.
          values: other values for hyperparameters that `inject_hyperparams` has put into the state.

        Raises:
          ValueError: for a value that is not among these.
        """
        data = put_replicated(np.asarray(jax.random.key_data(key)), self.mesh)
        key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
        start = put_replicated(np.zeros((), np.int32), self.mesh)
        given = self._chosen("init", values)
        server = self._first_server_state((key, given))
        clients = self._client_states.init(self._first_client_state, (key, given))
        return FederationState(key, start, server, clients)

    def _chosen(self, caller: str, values: Mapping[str, float]) -> Mapping[str, jax.Array]:
        """Return values for hyperparameters in the server's state, on all devices."""
        injected = hyperparams_of(self.shapes.server)
        if values.keys() - injected.keys():
            raise ValueError(
                f"{caller}: {sorted(values)} cannot be chosen; the algorithm's hyperparameters in "
                f"its state are {sorted(injected)}, see federated.inject_hyperparams"
            )
        given = {name: np.asarray(value, np.float32) for name, value in values.items()}
        return put_replicated(given, self.mesh)

    def save(self, state: FederationState) -> Snapshot:
        """Return a state as arrays that a checkpoint can hold."""
        return Snapshot(
            int(state.round),
            jax.random.key_data(state.key),
            str(jax.random.key_impl(state.key)),
            state.server,
            self._client_states.save(state.clients),
        )

    def restore(self, saved: Snapshot, held: Iterable[int] = ()) -> FederationState:
        """Return a state that was saved, also on other devices than before.

        Args:
          saved: from `save`.
          held: earlier rounds that client states on disk are still held for.
        """
        data, done = put_replicated(
            (np.asarray(saved.key), np.asarray(saved.round, np.int32)), self.mesh
        )
        key = jax.random.wrap_key_data(data, impl=saved.key_impl)
        server = put_replicated(jax.tree.map(np.asarray, saved.server), self.mesh)
        given = (key, hyperparams_of(server))
        clients = self._client_states.restore(
            saved.clients, self._first_client_state, given, saved.round, held
        )
        return FederationState(key, done, server, clients)

    def hold(self, rounds: Iterable[int]) -> None:
        """Keep client states of these rounds on disk for reopening; delete other past ones.

        Client states on disk move on with every round. Each of ``rounds`` is the last one or one
        that is held already. Elsewhere than on disk nothing needs to be held.
        """
        self._client_states.hold(rounds)

    def client_state(self, state: FederationState, k: int) -> Any:
        """Return the state of the client at position ``k``.

        Raises:
          ValueError: if there is no such client.
        """
        num_clients = self.dataset.num_clients
        if not 0 <= k < num_clients:
            raise ValueError(
                f"client {k} does not exist; {self.dataset.name} has {num_clients} clients"
            )
        return self._client_states.one(state.clients, k)

    def personal_params(self, state: FederationState, k: int) -> Any:
        """Return the model that the client at position ``k`` starts a round with."""
        client, algorithm = self.client_state(state, k), self.algorithm
        broadcast = algorithm.broadcast(state.server)
        received = algorithm.deliver(broadcast, self.dataset.client_ids[k])
        return algorithm.personal_params(received, client, training_data(self.dataset, k))

    def generate(
        self,
        state: FederationState,
        k: int,
        prompts: np.ndarray,
        mask: np.ndarray,
        new_tokens: int,
        end_id: int,
    ) -> np.ndarray:
        """Return the answers of the model that the client at position ``k`` starts a round with.

        Args:
          state: of the federation.
          k: position of the client.
          prompts, mask, new_tokens, end_id: see `Model.generate`, which the model must have.

        Returns:
          ``[B, new_tokens]`` int32.
        """
        # One device does it, with its copy of the frozen weights; parameters are bound to none.
        weights = jax.tree.map(lambda a: a.addressable_data(0), self._weights)
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), self.personal_params(state, k))
        return np.asarray(
            self._generate(weights, params, prompts, mask, new_tokens=new_tokens, end_id=end_id)
        )

    # Rounds

    def run_round(
        self, state: FederationState, score: bool = False
    ) -> tuple[FederationState, RoundResult]:
        """Run one round.

        Args:
          state: its buffers are donated; use the one that is returned.
          score: whether to score the cohort's local models, too.
        """
        staged = self._stage(state, score)
        train_round, _ = self._round_programs
        output = train_round(*self._program_arguments(state, staged), score=score)
        return self._finish(state, staged, output, score)

    def run_rounds(
        self, states: Sequence[FederationState], score: bool = False
    ) -> list[tuple[FederationState, RoundResult]]:
        """Run one round of each of S runs that differ in their keys, as one vmapped program.

        Args:
          states: at the same round; their buffers are donated.
          score: as in `run_round`.

        Raises:
          ValueError: if client states are not on devices.
        """
        if len(states) == 1:
            return [self.run_round(states[0], score)]
        if self.client_state_in != "device":
            raise ValueError(
                f"clients live in {self.client_state_in!r}; several runs at once need 'device'"
            )
        staged = [self._stage(state, score) for state in states]
        # Everybody's visits are the same in all runs; cohorts differ.
        visited = staged[:1] if self.everyone else staged
        _, train_rounds = self._round_programs
        outputs = train_rounds(
            weights=self._weights,
            key=tuple(state.key for state in states),
            round_index=states[0].round,
            server=tuple(state.server for state in states),
            clients=tuple(state.clients for state in states),
            data=staged[0].data,
            visits=tuple(each.visits for each in visited),
            score=score,
        )
        return [self._finish(*run, score) for run in zip(states, staged, outputs, strict=True)]

    def lower_round(self, state: FederationState) -> jax.stages.Lowered:
        """Return the round's program, to look at before or after compilation."""
        staged = self._stage(state, score=False)
        train_round, _ = self._round_programs
        return train_round.lower(*self._program_arguments(state, staged), score=False)  # type: ignore[attr-defined]

    def _stage(self, state: FederationState, score: bool) -> StagedClients:
        done, next_cohort = int(state.round), None
        if self._client_states.reads_ahead:
            next_cohort = self._turnout(state.key, done + 1).cohort
        cohort = self._turnout(state.key, done).cohort
        return self._client_states.stage(state.clients, done, cohort, next_cohort, score)

    def _turnout(self, key: jax.Array, round_index: int) -> Turnout:
        if self.everyone:
            return Turnout(np.arange(self.dataset.num_clients), self.dataset.num_clients)
        name = (np.asarray(jax.random.key_data(key)).tobytes(), round_index)
        if name not in self._drawn:  # prefetching has already drawn most cohorts
            turnout = self.participation.draw(
                jax.random.fold_in(key, COHORT),
                round_index,
                self.dataset.client_ids,
                self.dataset.splits["train"].sizes,
                self.cohort_size,
            )
            while len(self._drawn) > 1:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[name] = turnout
        return self._drawn[name]

    def _finish(
        self, state: FederationState, staged: StagedClients, output: RoundOutput, score: bool
    ) -> tuple[FederationState, RoundResult]:
        """Return the next state and the result of a round whose program has been started."""
        server, between_rounds = output.server, self.algorithm.between_rounds
        if between_rounds is not None and int(output.counts.answered):
            server = jax.tree.map(
                lambda a: put_replicated(a, self.mesh) if isinstance(a, np.ndarray) else a,
                between_rounds(server),
            )
        done = state.round + 1
        clients = self._client_states.keep(staged, output.clients, int(done))
        adapted: Mapping[str, ClientScores] = {}
        if score:
            tables = {"personal/adapted": output.scores}
            adapted = named_scores(
                self.dataset, self.task.metrics, self._eval_splits, [(staged, tables)]
            )

        def nonfinite():
            return staged.positions[on_host(output.left_out)[staged.device, staged.row] > 0]

        result = RoundResult(
            cohort=staged.positions,
            invited=self._turnout(state.key, int(done) - 1).invited,
            metrics=output.metrics,
            work=output.work,
            counts=output.counts,
            adapted=adapted,
            nonfinite=nonfinite,
        )
        return FederationState(state.key, done, server, clients), result

    # Scores

    def evaluate(
        self, state: FederationState, adapt: bool = True, **values: float
    ) -> dict[str, ClientScores]:
        """Return the scores of all clients by name; changes nothing.

        Args:
          state: of the federation.
          adapt: whether to train every client from the current global model, score it and throw the
            result away, too.
          values: to train with, of hyperparameters that `inject_hyperparams` has put into the
            state; those that are not named keep the values of the next round.

        Raises:
          ValueError: for a value that is not among these.
        """
        state = self._to_adapt_with(state, values)
        # A generator: with clients in a store only one block of them is on devices at a time.
        parts = (
            (
                staged,
                self._score_clients(*self._program_arguments(state, staged), adapt=adapt),
            )
            for staged in self._client_states.every(state.clients)
        )
        return named_scores(self.dataset, self.task.metrics, self._eval_splits, parts)

    def evaluate_new(
        self, state: FederationState, adapt: bool = True, **values: float
    ) -> dict[str, ClientScores]:
        """Return the scores of the dataset's new clients; changes nothing.

        Names begin with ``new_clients``. The received model is the one that a client that never
        trained starts with, the adapted one has had ``new_client_steps``.

        Args:
          state, adapt, values: as in `evaluate`.

        Raises:
          ValueError: if the dataset has no new clients.
        """
        state = self._to_adapt_with(state, values)
        new, staged = self._staged_new_clients(state)
        arguments = self._program_arguments(state, staged)
        tables = self._score_new_clients(*arguments, adapt=adapt)
        scores = named_scores(new, self.task.metrics, ["test"], [(staged, tables)])
        return {name.replace("test/", "new_clients/", 1): s for name, s in scores.items()}

    def _staged_new_clients(self, state: FederationState) -> tuple[FederatedDataset, StagedClients]:
        """Return the new clients, and where they are on devices with their first states.

        Raises:
          ValueError: if the dataset has none.
        """
        new = self.dataset.new_clients
        if new is None:
            raise ValueError(
                f"{self.dataset.name} has no new clients; make it with num_new_clients=..."
            )
        states: Any = ()
        if self.algorithm.newcomer is None:
            given = (state.server, state.key)
            states = self._new_clients.init(self._state_of_new_client, given)
        (staged,) = self._new_clients.every(states)
        return new, staged

    # Models

    def adapted_params(
        self, state: FederationState, clients: str = "train", **values: float
    ) -> Any:
        """Return the models that are scored as ``personal / adapted``; changes nothing.

        Args:
          state: of the federation.
          clients: ``"train"``, or ``"new"`` for the dataset's new clients, after
            ``new_client_steps``.
          values: as in `evaluate`.

        Returns:
          NumPy arrays ``[K, ...]`` in the clients' order, all on the host.

        Raises:
          ValueError: for another word, or if the dataset has no new clients.
        """
        return self.all_params(self._to_adapt_with(state, values), clients, "adapted")

    def all_params(
        self, state: FederationState, clients: str = "train", stage: str = "received"
    ) -> Any:
        """Return the models of all clients, as `adapted_params` does.

        Args:
          state, clients: as there.
          stage: ``"received"``: as a round starts with them; ``"adapted"``: after its local steps;
            ``"unseen"``: as a round would start if the client had no example, so that nothing of
            its data is in them but what its state has from earlier rounds; ``"fisher"``: no models
            but estimates, like the adapted ones, of the diagonal of their Fisher information for
            one example (`Algorithm.fisher`), zeros where nothing is known.

        Raises:
          ValueError: as there; for ``"fisher"``, if the algorithm has no such estimate.
        """
        if clients not in ("train", "new") or stage not in STAGES:
            raise ValueError(
                f"clients={clients!r}, stage={stage!r}: choose from ('train', 'new') and {STAGES}"
            )
        if stage == "fisher" and self.algorithm.fisher is None:
            raise ValueError(
                "stage='fisher': this algorithm keeps no averages of squared gradients; pflalign "
                "with plain SGD steps does"
            )
        if clients == "new":
            dataset, staged = self._staged_new_clients(state)
            blocks, program = iter([staged]), self._models_of_new_clients
        else:
            dataset, blocks = self.dataset, self._client_states.every(state.clients)
            program = self._models_of_clients
        parts = (
            (staged, program(*self._program_arguments(state, staged), stage=stage))
            for staged in blocks
        )
        return gather_models(dataset.num_clients, parts)

    def _to_adapt_with(
        self, state: FederationState, values: Mapping[str, float]
    ) -> FederationState:
        """Return a state in whose evaluation clients are trained with ``values``."""
        if not values:
            return state
        given = self._chosen("evaluate", values)
        return state._replace(server=state.server._replace(adaptation=given))

    # Programs and first states

    def _program_arguments(self, state: FederationState, staged: StagedClients) -> tuple:
        run = state.key, state.round, state.server
        return self._weights, *run, staged.states, staged.data, staged.visits

    @functools.cached_property
    def _weights(self) -> Any:
        """The model's frozen weights, once on each device; () without any."""
        return put_replicated(weights_of(self.model.frozen), self.mesh)

    @functools.cached_property
    def _round_programs(self) -> tuple[Callable, Callable]:
        return round_programs(self._options)

    @functools.cached_property
    def _generate(self) -> Callable:
        assert self.model.generate is not None
        function = as_argument(self.model.frozen, self.model.generate)
        return jax.jit(function, static_argnames=("new_tokens", "end_id"))

    @functools.cached_property
    def _score_clients(self) -> Callable:
        return eval_program(self._options)

    @functools.cached_property
    def _score_new_clients(self) -> Callable:
        return eval_program(self._options_of_new_clients)

    @functools.cached_property
    def _models_of_clients(self) -> Callable:
        return models_program(self._options)

    @functools.cached_property
    def _models_of_new_clients(self) -> Callable:
        return models_program(self._options_of_new_clients)

    @property
    def _options_of_new_clients(self) -> ProgramOptions:
        return self._options._replace(
            adapt_steps=self.new_client_steps, newcomers=self.algorithm.newcomer is not None
        )

    @functools.cached_property
    def _new_clients(self) -> ClientStates:
        new = self.dataset.new_clients
        assert new is not None
        return StatesOnDevices(new, self.mesh, self.client_chunk, new.num_clients)

    @functools.cached_property
    def _eval_splits(self) -> list[str]:
        return [s for s in ("validation", "test") if len(self.dataset.splits[s].indices)]

    def _first_states(self, key: jax.Array, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the server's and one client's first state."""
        return first_states(self.algorithm, self.model, self.dataset, key, values)

    def _first_client_state(self, key_and_values: tuple[jax.Array, Mapping]) -> Any:
        _, client = self._first_states(*key_and_values)
        return client

    @functools.cached_property
    def _first_server_state(self) -> Callable[[Any], Any]:
        @functools.partial(jax.jit, out_shardings=NamedSharding(self.mesh, REPLICATED))
        def first_server_state(key_and_values):
            server, _ = self._first_states(*key_and_values)
            return server

        return first_server_state

    def _state_of_new_client(self, server_and_key: tuple[Any, jax.Array]) -> Any:
        """Return the first state that ``init`` gives a client of the current global model."""
        (server, key), algorithm = server_and_key, self.algorithm
        values = hyperparams_of(server)
        if algorithm.global_params is None:
            return self._first_client_state((key, values))
        params = algorithm.global_params(algorithm.broadcast(server))
        _, client = algorithm.init(params, jax.random.fold_in(key, STATES), **values)
        return client


def first_states(
    algorithm: Algorithm,
    model: Model,
    dataset: FederatedDataset,
    key: jax.Array,
    values: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Return the server's and one client's first state.

    Args:
      algorithm, model, dataset: of the federation.
      key: of the run.
      values: of hyperparameters that `inject_hyperparams` has put into the state.
    """
    example = jnp.zeros((1, *dataset.x.shape[1:]), input_dtype(dataset))
    params = model.init(jax.random.fold_in(key, INIT), example)
    return algorithm.init(params, jax.random.fold_in(key, STATES), **values)
