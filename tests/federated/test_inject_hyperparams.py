"""Hyperparameters as data: the same results as constants, one program for all of them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import test_util

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.federated import federate, inject_hyperparams
from pflalign_jax.runs.config import TUNED

MODEL = models.mlp(10, hidden=(6,))
ADAPTED = models.lora(MODEL, MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), rank=2)
ADAPTERS_ONLY = ("ffa_lora", "fedsa_lora", "rolora", "flora")


@pytest.fixture(scope="module")
def data():
    return datasets.digits(num_clients=4, fraction=0.15, num_new_clients=1)


def model_for(name):
    return ADAPTED if name in ADAPTERS_ONLY else MODEL


def maker(name, num_clients):
    """Return ``values -> algorithm``."""
    factory = getattr(algorithms, name)
    supplied = {
        "model": model_for(name),
        "num_classes": 10,
        "num_clients": num_clients,
    }
    takes = inspect.signature(factory).parameters
    supplied = {k: v for k, v in supplied.items() if k in takes}
    return lambda **values: factory(**supplied, **values)


def scores_of(federation, state):
    for _ in range(2):
        state, _ = federation.run_round(state)
    scores = {**federation.evaluate(state), **federation.evaluate_new(state)}
    return {name: score.loss for name, score in scores.items()}


CASES = [
    (name, {"learning_rate": 0.1}, {"learning_rate": 0.03})
    for name in algorithms.NAMES
    if name not in (*TUNED, "fedbn")
]
CASES += [
    (
        name,
        {"learning_rate": 0.1, field: float(values[0])},
        {"learning_rate": 0.03, field: float(values[1])},
    )
    for name, (field, values) in TUNED.items()
]
FAST = ("fedproto",)  # its predict() is inject_hyperparams, too; the others are alike


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [pytest.param(*case, marks=[] if case[0] in FAST else pytest.mark.slow) for case in CASES],
)
def test_values_are_those_that_were_chosen(name, first, then, data):
    make, model = maker(name, data.num_clients), model_for(name)
    shared = federate(inject_hyperparams(make, **first), model, data)
    alone = federate(make(**then), model, data)
    assert shared.bytes_per_round == alone.bytes_per_round
    expected = scores_of(alone, alone.init(jax.random.key(0)))
    found = scores_of(shared, shared.init(jax.random.key(0), **then))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected
    )


@pytest.mark.parametrize(("name", "first", "then"), CASES)
def test_an_algorithm_is_made_of_traced_values(name, first, then):
    """In programs values cannot be looked at, nor made Python's floats."""
    make = maker(name, 4)
    jax.eval_shape(lambda values: make(**values) and 0, then)


def test_other_values_compile_nothing(data):
    make = maker("ditto", data.num_clients)
    federation = federate(inject_hyperparams(make, learning_rate=0.1, lam=0.1), MODEL, data)
    seen = []
    for rate in (0.1, 0.3):
        with test_util.count_jit_compilation_cache_miss() as count:
            state = federation.init(jax.random.key(0), learning_rate=rate, lam=1.0)
            seen.append(scores_of(federation, state)["test/personal/adapted"].sum())
        compiled = count()
    assert compiled == 0 and seen[0] != seen[1]


def test_values_that_are_wrong_or_unknown_are_named(data):
    make = maker("ditto", data.num_clients)
    with pytest.raises(ValueError, match=r"lam=-1\.0"):
        inject_hyperparams(make, lam=-1.0)
    federation = federate(inject_hyperparams(make, lam=1.0), MODEL, data)
    with pytest.raises(ValueError, match=r"\['mu'\] cannot be chosen.*\['lam'\]"):
        federation.init(jax.random.key(0), mu=1.0)
    plain = federate(make(), MODEL, data)
    with pytest.raises(ValueError, match=r"\['lam'\] cannot be chosen.*\[\]"):
        plain.init(jax.random.key(0), lam=1.0)


def test_a_saved_state_goes_on_with_its_values(data):
    make = maker("fedprox", data.num_clients)
    federation = federate(inject_hyperparams(make, learning_rate=0.1, mu=0.0), MODEL, data)
    state, _ = federation.run_round(federation.init(jax.random.key(0), learning_rate=0.3, mu=1.0))
    saved = jax.device_get(federation.save(state)._replace(key=None, key_impl=None))
    assert saved.server.values == {"learning_rate": np.float32(0.3), "mu": np.float32(1)}
