"""Algorithms whose hyperparameters are data of a program, not constants in it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.federated.algorithm import Algorithm


class Tuned(NamedTuple):
    """A state with the hyperparameters that go with it, float32 scalars by name."""

    values: Mapping[str, jax.Array]
    own: Any


def values_of(server: Any) -> Mapping[str, jax.Array]:
    """Return the hyperparameters in a server's state; none if they are constants."""
    return server.values if isinstance(server, Tuned) else {}


def inject_hyperparams(make: Callable[..., Algorithm], **values: float) -> Algorithm:
    """Return ``make(**values)`` with the values in the server's state.

    So a program that was compiled for one step size runs with others:
    ``federation.init(key, learning_rate=0.3)`` starts a run with this one. Results are those of
    ``make(learning_rate=0.3)``, to rounding: constants may be folded where arguments cannot.

    Args:
      make: from hyperparameters to an algorithm; it must not decide by their values what to
        compute. They are traced in programs, where they cannot be checked.
      values: hyperparameters to begin with; they are checked by ``make``.
    """
    fixed = make(**values)
    passed = Algorithm._field_defaults

    def init(params, key, **others):
        known = {name: jnp.float32(value) for name, value in (values | others).items()}
        server, client = make(**(values | others)).init(params, key)
        return Tuned(known, server), client

    def of(tuned):
        return make(**tuned.values)

    def model(tuned, params):
        return params if fixed.predict is None else Tuned(tuned.values, params)

    def client_update(received, client, data, key):
        output = of(received).client_update(received.own, client, data, key)
        return output._replace(params=model(received, output.params))

    def personal_params(received, client, data):
        return model(received, of(received).personal_params(received.own, client, data))

    def inside(name):
        """Return a field's function of ``(tuned, ...)`` that returns its next state."""

        def call(tuned, *others):
            return tuned._replace(own=getattr(of(tuned), name)(tuned.own, *others))

        given = getattr(fixed, name)
        return given if given is passed.get(name) else call

    def of_own(name):
        """Return a field's function of ``(tuned, ...)``, None where there is none."""
        given = getattr(fixed, name)
        return given and (lambda tuned, *others: getattr(of(tuned), name)(tuned.own, *others))

    return fixed._replace(
        init=init,
        client_update=client_update,
        personal_params=personal_params,
        server_update=inside("server_update"),
        broadcast=inside("broadcast"),
        deliver=inside("deliver"),
        between_rounds=inside("between_rounds"),
        global_params=of_own("global_params"),
        newcomer=of_own("newcomer"),
        predict=of_own("predict"),
    )
