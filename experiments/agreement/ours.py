"""Our side of a comparison."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.agreement.data import BatchOrders
from experiments.agreement.networks import Network
from experiments.benchmark.any_algorithm import named_algorithm
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Federation, FederationState, client_mesh, federate


class Settings(NamedTuple):
    """What both sides train with."""

    rounds: int
    learning_rate: float
    local_epochs: int
    batch_size: int


class Outcome(NamedTuple):
    """What a side has after the last round.

    Attributes:
      global_model: parameters; None where there is no global model.
      personal: parameters of the models that clients would start the next round with, ``[K, ...]``.
      hits: ``[K]`` right predictions of these on the clients' test examples.
    """

    global_model: Any
    personal: Any
    hits: np.ndarray


class OurRun(NamedTuple):
    """Our side's run.

    Attributes:
      first_personal: personal models before the first round, ``[K, ...]``.
      servers: server states, before the first round and after each.
      outcome: after the last round.
      perturbed: personal models after as many rounds from first states that were changed by
        `PERTURBATION`: how far rounding alone can lead.
    """

    first_personal: Any
    servers: list[Any]
    outcome: Outcome
    perturbed: Any


PERTURBATION = 1e-7
"""Relative change of first weights, about float32's rounding."""


def train(
    name: str,
    fields: Mapping[str, Any],
    network: Network,
    first_params: Any,
    dataset: FederatedDataset,
    orders: BatchOrders,
    settings: Settings,
) -> OurRun:
    """Train with an algorithm of this library.

    Args:
      name: of the algorithm.
      fields: its own hyperparameters.
      network: whose model is trained.
      first_params: the first global model.
      dataset: of all clients, who take part in every round.
      orders: of their examples.
      settings: of the training.
    """
    model = network.ours()._replace(init=lambda key, x: first_params)
    algorithm = named_algorithm(
        name,
        model,
        dataset,
        fields,
        learning_rate=settings.learning_rate,
        local_epochs=settings.local_epochs,
        batch_size=settings.batch_size,
    )
    # One device: what computes the orders is called from inside the program.
    mesh = client_mesh(jax.devices()[:1])
    federation = federate(algorithm, model, dataset, drop_last=True, mesh=mesh)
    with orders.imposed():
        start = federation.init(jax.random.key(0))
        # Copies, as a round takes the buffers of its state for its own.
        first, changed = federation.all_params(start), _perturbed(start)
        state, servers = _after_rounds(federation, start, orders, settings.rounds)
        other, _ = _after_rounds(federation, changed, orders, settings.rounds)
        scores = federation.evaluate(state, adapt=False)["test/personal/received"]
    of_server = algorithm.global_params
    outcome = Outcome(
        None if of_server is None else on_host(of_server(algorithm.broadcast(state.server))),
        federation.all_params(state),
        np.rint(scores.accuracy * scores.examples).astype(int),
    )
    return OurRun(first, servers, outcome, federation.all_params(other))


def _after_rounds(
    federation: Federation, state: FederationState, orders: BatchOrders, rounds: int
) -> tuple[FederationState, list[Any]]:
    """Return the state after some rounds, and the server's before the first and after each."""
    servers = [on_host(state.server)]
    for orders.round in range(rounds):
        state, _ = federation.run_round(state)
        # The order of examples is asked for while the round runs, so it must end before the next.
        jax.block_until_ready((state.server, state.clients))
        servers.append(on_host(state.server))
    return state, servers


def _perturbed(state: FederationState) -> FederationState:
    """Return a state whose floats are changed by `PERTURBATION`."""
    rng = np.random.default_rng(0)

    def change(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf + 0
        factor = 1 + PERTURBATION * rng.standard_normal(leaf.shape)
        return (leaf * jnp.asarray(factor, leaf.dtype)).astype(leaf.dtype)

    return state._replace(
        server=jax.tree.map(change, state.server),
        clients=jax.tree.map(change, state.clients),
        round=state.round + 0,
    )


def on_host(tree: Any) -> Any:
    """Return a copy of a tree as NumPy arrays."""
    return jax.tree.map(np.array, tree)
