"""Algorithms whose hyperparameters are data of a program, not constants in it.

The name is optax's: `optax.inject_hyperparams` does the same for an optimiser.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.federated.algorithm import Algorithm


class InjectedState(NamedTuple):
    """A server's state, or what clients receive of it, with hyperparameters.

    Attributes:
      values: float32 scalars by name; of what clients receive, those of this round.
      inner: the algorithm's own state.
      rounds: int32 scalar, rounds done in which somebody answered; () where no value changes with
        them, and in what clients receive.
      adaptation: further values, those that an evaluation adapts clients with; () elsewhere.
    """

    values: Mapping[str, jax.Array]
    inner: Any
    rounds: Any = ()
    adaptation: Any = ()


def adapting(server: Any, received: Any) -> Any:
    """Return what clients receive, with the values that an evaluation adapts with.

    Args:
      server: the server's state.
      received: what clients have downloaded of it.
    """
    if not isinstance(server, InjectedState) or not server.adaptation:
        return received
    return received._replace(values={**received.values, **server.adaptation})


Schedule = Callable[[jax.Array], jax.Array]
"""From the rounds done to what a value is multiplied by, as optax's schedules of steps."""


def hyperparams_of(server: Any) -> Mapping[str, jax.Array]:
    """Return the hyperparameters in a server's state; none if they are constants."""
    return server.values if isinstance(server, InjectedState) else {}


def inject_hyperparams(
    make: Callable[..., Algorithm],
    *,
    schedules: Mapping[str, Schedule] = MappingProxyType({}),
    **values: float,
) -> Algorithm:
    """Return ``make(**values)`` with the values in the server's state.

    So a program that was compiled for one step size runs with others:
    ``federation.init(key, learning_rate=0.3)`` starts a run with this one. Results are those of
    ``make(learning_rate=0.3)``, to rounding: constants may be folded where arguments cannot.

    Args:
      make: from hyperparameters to an algorithm; it must not branch on these values. They are
        traced in programs, where they cannot be checked.
      schedules: from the name of a hyperparameter to what it is multiplied by as rounds go on.
      values: hyperparameters to begin with; they are checked by ``make``.
    """
    plain = make(**values)

    def values_of(state: InjectedState) -> dict[str, jax.Array]:
        """Return the values of this round."""
        if isinstance(state.rounds, tuple):  # no schedules, or done by the server
            return dict(state.values)
        now = {name: schedule(state.rounds) for name, schedule in schedules.items()}
        return {name: value * now.get(name, 1) for name, value in state.values.items()}

    def with_values(state: InjectedState) -> Algorithm:
        return make(**values_of(state))

    def model(state: InjectedState, params: Any) -> Any:
        # `predict` sees a model only: its hyperparameters travel with the model.
        return params if plain.predict is None else InjectedState(state.values, params)

    def init(params, key, **others):
        chosen = values | others
        server, client = make(**chosen).init(params, key)
        known = {name: jnp.float32(value) for name, value in chosen.items()}
        return InjectedState(known, server, jnp.int32(0) if schedules else ()), client

    def broadcast(state):
        # Clients download the values of the round, and need not know which one it is.
        return InjectedState(values_of(state), with_values(state).broadcast(state.inner))

    def server_update(state, aggregate):
        inner = with_values(state).server_update(state.inner, aggregate)
        rounds = optax.safe_increment(state.rounds) if schedules else ()
        return InjectedState(state.values, inner, rounds)

    def client_update(received, client, data, key):
        output = with_values(received).client_update(received.inner, client, data, key)
        return output._replace(params=model(received, output.params))

    def personal_params(received, client, data):
        params = with_values(received).personal_params(received.inner, client, data)
        return model(received, params)

    def next_state(field: str) -> Any:
        """Wrap a field that goes from a state to another; a default stays as it is."""

        def wrapped(state, *others):
            inner = getattr(with_values(state), field)(state.inner, *others)
            return state._replace(inner=inner)

        given = getattr(plain, field)
        return given if given is Algorithm._field_defaults.get(field) else wrapped

    def read_state(field: str) -> Any:
        """Wrap a field that reads a state; None stays None."""

        def wrapped(state, *others):
            return getattr(with_values(state), field)(state.inner, *others)

        return None if getattr(plain, field) is None else wrapped

    return plain._replace(
        init=init,
        client_update=client_update,
        personal_params=personal_params,
        server_update=server_update,
        broadcast=broadcast,
        deliver=next_state("deliver"),
        between_rounds=next_state("between_rounds"),
        global_params=read_state("global_params"),
        newcomer=read_state("newcomer"),
        predict=read_state("predict"),
    )
