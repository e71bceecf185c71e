"""The first stage of a round on a node: the simulation's own programs, on one client."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from pflalign_jax.federated import ClientScores, Federation, FederationState
from pflalign_jax.federated.cohort_visit import Visited
from pflalign_jax.federated.device_program import (
    add_device_axis,
    compiler_options,
    drop_device_axis,
    sharded_program,
)
from pflalign_jax.federated.inject_hyperparams import hyperparams_of
from pflalign_jax.federated.metrics import named_scores
from pflalign_jax.federated.round_program import visitor_of_round
from pflalign_jax.federated.sharding import SHARDED
from pflalign_jax.federated.snapshot import ClientSnapshot, Snapshot


class Trained(NamedTuple):
    """What came of a client's local training.

    Attributes:
      message: for the server, NumPy arrays.
      state: the client's next state; it stays here.
      metrics: name to `Mean`.
      steps: local steps taken.
      nonfinite: whether its loss, message or state was not finite: then nothing counts.
      scores: of its local model; {} unless it was to be scored.
    """

    message: Any
    state: Any
    metrics: Any
    steps: int
    nonfinite: bool
    scores: Mapping[str, ClientScores]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NodeFederation(Federation):
    """A federation of one client, whose server's state is what the client has received.

    Attributes:
      seed: of the run; draws are keyed as in a simulation.
    """

    seed: int

    @classmethod
    def of(cls, federation: Federation, seed: int) -> "NodeFederation":
        """Return a federation of one client as one of a node."""
        fields = {f.name: getattr(federation, f.name) for f in dataclasses.fields(federation)}
        return cls(**fields, seed=seed)

    def first_state(self, received: Any) -> Any:
        """Return the state of a client that never trained."""
        given = jax.random.key(self.seed), hyperparams_of(received)
        return jax.tree.map(np.asarray, jax.jit(self._first_client_state)(given))

    def start_params(self, received: Any, client: Any) -> Any:
        """Return the model that the client starts a round with."""
        return self.personal_params(self._state_of(0, received, client), 0)

    def train(
        self, done: int, received: Any, client: Any, score: bool, secret: bytes = b""
    ) -> Trained:
        """Return what comes of a round's local training.

        Args:
          done: rounds done.
          received: by the client, NumPy arrays.
          client: its state, likewise.
          score: whether to score its local model.
          secret: draws are keyed by it as well; without one a server could repeat them.
        """
        state = self._state_of(done, received, client)
        for word in np.frombuffer(secret, np.uint32):
            state = state._replace(key=jax.random.fold_in(state.key, word))
        staged = self._client_states.stage(state.clients, done, np.array([0]), None, score)
        visited = self._visit(*self._program_arguments(state, staged), score=score)
        sums = visited.sums
        scores: Mapping[str, ClientScores] = {}
        if score:
            tables = {"personal/adapted": visited.scores}
            metrics = self.task.metrics
            scores = named_scores(self.dataset, metrics, self._eval_splits, [(staged, tables)])

        def of_client(tree: Any, axes: int) -> Any:
            return jax.tree.map(lambda a: np.asarray(a)[(0,) * axes], tree)

        return Trained(
            message=of_client(sums.messages.messages, 2),
            state=of_client(visited.clients, 2),
            metrics=of_client(sums.metrics, 1),
            steps=int(sums.steps[0]),
            nonfinite=bool(sums.counts.nonfinite[0]),
            scores=scores,
        )

    def scores(
        self, done: int, received: Any, client: Any, adapt: bool, values: Mapping[str, float]
    ) -> dict[str, ClientScores]:
        """Return the scores of the client's models, see `Federation.evaluate`."""
        return self.evaluate(self._state_of(done, received, client), adapt, **values)

    def _state_of(self, done: int, received: Any, client: Any) -> FederationState:
        key = jax.random.key(self.seed)
        clients = ClientSnapshot(
            np.zeros((1, 1), np.int32), jax.tree.map(lambda a: np.asarray(a)[None, None], client)
        )
        data, name = jax.random.key_data(key), str(jax.random.key_impl(key))
        return self.restore(Snapshot(done, data, name, received, clients))

    @functools.cached_property
    def _visit(self) -> Callable[..., Visited]:
        """The jitted first stage of a round; arguments as those of the round's program."""

        def on_device(key, round_index, received, clients, data, visits, *, score):
            clients, data, visits = drop_device_axis(clients, data, visits)
            visitor = visitor_of_round(self._options, key, round_index, received, data, score=score)
            visited = visitor.visit_cohort(clients, visits, visitor.output_shapes(clients))
            return add_device_axis(visited)

        @functools.partial(
            jax.jit, static_argnames="score", compiler_options=compiler_options(self.mesh)
        )
        def visit(weights, key, round_index, received, clients, data, visits, *, score):
            function = functools.partial(on_device, score=score)
            program = sharded_program(self._options, function, out_specs=SHARDED)
            return program(weights, key, round_index, received, clients, data, visits)

        return visit
