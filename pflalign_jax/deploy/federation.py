"""A federation whose clients are nodes elsewhere: its rounds ask them and reduce what they answer.

`pflalign_jax.runs.loop` runs it as it runs a simulation.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.deploy.compact import expanded
from pflalign_jax.deploy.letters import Letter, lost_letter, staged_letters
from pflalign_jax.deploy.packets import (
    FORMAT,
    REFUSED,
    Packet,
    RefusedError,
    list_of,
    packed,
    unpacked,
    value_of,
)
from pflalign_jax.deploy.run_files import RunFiles
from pflalign_jax.federated import (
    Algorithm,
    ClientScores,
    Federation,
    FederationState,
    RoundResult,
    Turnout,
)
from pflalign_jax.federated.message_size import imaginary_client
from pflalign_jax.federated.metrics import no_scores
from pflalign_jax.random_purposes import COHORT
from pflalign_jax.runs.named_arrays import named_arrays


class Nodes(Protocol):
    """The clients' machines, however they are reached, by the identities of their clients."""

    def present(self) -> Sequence[int]:
        """Return the clients whose nodes are there now."""

    def ask(self, kind: str, requests: Mapping[int, Packet]) -> Mapping[int, Packet]:
        """Return the answers; those that did not come in time are missing."""


class Answers(NamedTuple):
    """What came back, by the clients' positions.

    Attributes:
      good: answers, parsed.
      refused: why others cannot be used.
      bytes_up: of all of them.
      bytes_down: of what they were sent.
    """

    good: dict[int, Any]
    refused: dict[int, str]
    bytes_up: int
    bytes_down: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DeployedFederation(Federation):
    """A federation of nodes; made by `pflalign_jax.deploy.server.deployed`.

    ``FederationState.clients`` has in place of each client's state the round that it is of: ``[K]``
    int64, 0 for a client that never took part.

    Attributes:
      nodes: who is asked.
      config_hash: of the run, see `pflalign_jax.deploy.packets.config_hash`.
      run_files: where it is written who answered.
      start: when this server began, in nanoseconds; a later one is preferred.
    """

    nodes: Nodes
    config_hash: str
    run_files: RunFiles
    start: int = dataclasses.field(default_factory=time.time_ns)

    # Rounds

    def run_round(
        self, state: FederationState, score: bool = False
    ) -> tuple[FederationState, RoundResult]:
        """Ask a cohort of the nodes that are there to train, and give the server their messages."""
        clock, done = time.perf_counter(), int(state.round)
        cohort = self._cohort(state.key, done)
        held = self.run_files.held_rounds()
        requests = self._requests(state, cohort, {"score": score, "held": held})
        answers = self._ask("train", requests, functools.partial(self._letter, done))
        letters = {k: letter for k, (letter, _) in answers.good.items()}
        staged = staged_letters(
            letters, self._letter_shapes, self.cohort_size, self.dataset, self.mesh
        )
        train_round, _ = self._round_programs
        output = train_round(*self._program_arguments(state, staged), score=False)
        new, result = self._finish(state, staged, output, score=False)
        nonfinite = result.nonfinite()
        counted = np.setdiff1d(staged.positions, nonfinite)
        rounds = state.clients.copy()
        rounds[counted] = done + 1
        adapted: Mapping[str, ClientScores] = {}
        if score:
            adapted = self._scores({k: scores for k, (_, scores) in answers.good.items()})
        self._record("train", done + 1, cohort, answers, counted, nonfinite, clock)
        return new._replace(clients=rounds), result._replace(
            cohort=np.sort(staged.positions), invited=len(cohort), adapted=adapted
        )

    def evaluate(
        self, state: FederationState, adapt: bool = True, **values: float
    ) -> dict[str, ClientScores]:
        """Return the scores of all clients whose nodes are there; see `Federation.evaluate`."""
        if values:
            self._chosen("evaluate", values)
        clock, done = time.perf_counter(), int(state.round)
        everyone = self._present()
        more = {
            "adapt": adapt,
            "adapt_names": list(values),
            "adapt_values": [float(value) for value in values.values()],
        }
        requests = self._requests(state, everyone, more)
        answers = self._ask("evaluate", requests, functools.partial(self._scored, done))
        counted = np.array(sorted(answers.good), np.int64)
        self._record("evaluate", done, everyone, answers, counted, counted[:0], clock)
        return self._scores(answers.good)

    # Who is asked

    def _present(self) -> np.ndarray:
        """Return the positions of the clients whose nodes are there, ascending."""
        return np.flatnonzero(np.isin(self.dataset.client_ids, list(self.nodes.present())))

    def _cohort(self, key: jax.Array, done: int) -> np.ndarray:
        """Draw a round's cohort from those who are there, as a simulation draws it from all."""
        present = self._present()
        if len(present) == self.dataset.num_clients:
            return self._turnout(key, done).cohort
        turnout: Turnout = self.participation.draw(
            jax.random.fold_in(key, COHORT),
            done,
            self.dataset.client_ids[present],
            self.dataset.splits["train"].sizes[present],
            min(self.cohort_size, len(present)),
        )
        return present[turnout.cohort]

    def _requests(
        self, state: FederationState, positions: np.ndarray, more: Mapping[str, Any]
    ) -> dict[int, Packet]:
        """Return what is sent to each of the clients, by position."""
        run = {
            **greeting(self.config_hash).values,
            "run": self.run_files.run_name(),
            "start": self.start,
            "round": int(state.round),
            "num_clients": self.dataset.num_clients,
        }
        # Most algorithms send all clients the same.
        alike = self.algorithm.deliver is Algorithm._field_defaults["deliver"]
        arrays, requests = None, {}
        for k in map(int, positions):
            client_id = int(self.dataset.client_ids[k])
            if arrays is None or not alike:
                arrays = packed("received", self._delivered(state.server, np.int32(client_id)))
            own = {"client_id": client_id, "state_round": int(state.clients[k])}
            requests[k] = Packet(arrays, {**run, **own, **more})
        return requests

    @functools.cached_property
    def _delivered(self) -> Any:
        algorithm = self.algorithm
        return jax.jit(lambda server, k: algorithm.deliver(algorithm.broadcast(server), k))

    # What they answer

    def _ask(self, kind: str, requests: Mapping[int, Packet], parse: Any) -> Answers:
        """Ask nodes, and parse what they answer with ``(position, packet) -> value``."""
        ids = {k: int(self.dataset.client_ids[k]) for k in requests}
        packets = self.nodes.ask(kind, {ids[k]: request for k, request in requests.items()})
        found = {k: packets[ids[k]] for k in requests if ids[k] in packets}
        good, refused = {}, {}
        for k, packet in found.items():
            try:
                if REFUSED in packet.values:
                    raise RefusedError(str(packet.values[REFUSED]))
                good[k] = parse(k, packet)
            except RefusedError as error:
                refused[k] = str(error)
        up, down = (sum(p.num_bytes for p in all_of.values()) for all_of in (found, requests))
        return Answers(good, refused, up, down)

    @functools.cached_property
    def _letter_shapes(self) -> Letter:
        """The shapes of what a client sends in a round."""
        received = jax.eval_shape(self._delivered, self.shapes.server, jnp.int32(0))
        output = jax.eval_shape(
            self.algorithm.client_update,
            received,
            self.shapes.client,
            imaginary_client(self.dataset),
            jax.random.key(0),
        )
        return Letter(output.message, dict(output.metrics), output.steps)

    def _letter(self, done: int, k: int, answer: Packet) -> tuple[Letter, dict[str, list[float]]]:
        """Return what a client sent in a round, and the scores of its local model."""
        self._check_round(done, answer)
        steps = value_of(answer, "steps", int)
        if not 0 <= steps < 2**31:
            raise RefusedError(f"steps={steps} is not possible")
        shapes = self._letter_shapes
        if value_of(answer, "nonfinite", bool):
            return lost_letter(shapes)._replace(steps=np.int32(steps)), {}
        answer = answer._replace(
            arrays=expanded(answer.arrays, named_arrays("message", shapes.message))
        )
        # Numbers that are not finite are found by the round's program, which leaves them out.
        letter = Letter(
            unpacked(answer, "message", shapes.message, finite=False),
            unpacked(answer, "metrics", shapes.metrics, finite=False),
            np.int32(steps),
        )
        return letter, self._scored(done, k, answer)

    def _scored(self, done: int, k: int, answer: Packet) -> dict[str, list[float]]:
        """Return a client's scores: of each its examples, and then its metrics."""
        self._check_round(done, answer)
        metrics, scores = self.task.metrics, {}
        for key in answer.values:
            name = key.removeprefix("score/")
            if name == key:
                continue
            values = list_of(answer, key, (int, float))
            split = name.split("/")[0]
            examples = self.dataset.splits[split].sizes[k] if split in self._eval_splits else 0
            if len(values) != 1 + len(metrics) or values[0] != examples:
                raise RefusedError(
                    f"{key}={values} are not the scores of {examples} examples by "
                    f"{[metric.name for metric in metrics]}"
                )
            scores[name] = values
        return scores

    def _scores(
        self, by_client: Mapping[int, Mapping[str, Sequence[float]]]
    ) -> dict[str, ClientScores]:
        """Return the scores of all clients that sent theirs, as one table for each score."""
        metrics, tables = self.task.metrics, {}
        for name in (f"{split}/{model}" for model in MODELS for split in self._eval_splits):
            found = {k: scores[name] for k, scores in by_client.items() if name in scores}
            if not found:
                continue
            tables[name] = table = no_scores(self.dataset.num_clients, metrics)
            for k, (examples, *values) in found.items():
                table.examples[k] = examples
                for metric, value in zip(metrics, values, strict=True):
                    table.values[metric.name][k] = value
        return tables

    def _check_round(self, done: int, answer: Packet) -> None:
        found = value_of(answer, "round", int)
        if found != done:
            raise RefusedError(f"the answer is of round {found}, not of round {done}")

    def _record(
        self,
        kind: str,
        round_index: int,
        asked: np.ndarray,
        answers: Answers,
        counted: np.ndarray,
        nonfinite: np.ndarray,
        clock: float,
    ) -> None:
        names = [str(name) for name in self.dataset.client_names]
        missing = [k for k in map(int, asked) if k not in {*answers.good, *answers.refused}]
        self.run_files.append(
            {
                "round": round_index,
                "kind": kind,
                "asked": [names[k] for k in map(int, asked)],
                "counted": [names[k] for k in map(int, counted)],
                "missing": [names[k] for k in missing],
                "refused": {names[k]: why for k, why in answers.refused.items()},
                "nonfinite": [names[k] for k in map(int, nonfinite)],
                "bytes_up": answers.bytes_up,
                "bytes_down": answers.bytes_down,
                "seconds": time.perf_counter() - clock,
            }
        )


MODELS = ("global", "personal/adapted", "personal/received")
"""Models that are scored, in the order of a simulation's rows."""


def greeting(config_hash: str) -> Packet:
    """Return the request that a node introduces itself for."""
    return Packet({}, {"format": FORMAT, "config": config_hash})
