"""A random key is used once in a client's round: for one draw, or to make others from it.

JAX numbers the keys that it makes: ``fold_in(key, 1)`` is ``split(key)[1]``, so a method that does
both with one key has two loops that share what they draw.
"""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import ADAPTED, FEATURES, labelled
from jax.extend.random import define_prng_impl, threefry_prng_impl
from make import ADAPTERS_ONLY, make

from pflalign_jax import algorithms
from pflalign_jax.federated import ClientData
from pflalign_jax.models import cross_entropy

ON_PURPOSE = {"ditto": 2, "perfedavg, Hessian-free": 3}
"""How often a key may be used: Ditto trains two models on the same batches, and Per-FedAvg takes
a finite difference of the gradient that it has stepped along. All others: once."""


class Uses(NamedTuple):
    """Keys as tuples of their data: how often drawn from and how often made, and what from."""

    drawn: collections.Counter
    made: collections.Counter
    parents: set


USES = Uses(collections.Counter(), collections.Counter(), set())


def as_tuples(key_data):
    return [tuple(row) for row in np.asarray(key_data).reshape(-1, 2).tolist()]


def recorded_bits(key_data, bit_width, shape):
    jax.debug.callback(lambda key: USES.drawn.update(as_tuples(key)), key_data)
    return threefry_prng_impl.random_bits(key_data, bit_width, shape)


def recorded(make_keys):
    """Return ``split`` or ``fold_in`` that notes down its argument and what it made."""

    def record(parent, made):
        USES.parents.update(as_tuples(parent))
        USES.made.update(as_tuples(made))

    def recorded_make(key_data, argument):
        made = make_keys(key_data, argument)
        jax.debug.callback(record, key_data, made)
        return made

    return recorded_make


RECORDED = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=recorded(threefry_prng_impl.split),
    fold_in=recorded(threefry_prng_impl.fold_in),
    random_bits=recorded_bits,
    name="recorded",
)


def dropout_loss(model):
    """Return the cross-entropy of features of which a random half is left out."""

    def loss(params, batch, key):
        kept = jax.random.bernoulli(key, 0.5, batch.x.shape)
        return cross_entropy(model)(params, batch._replace(x=batch.x * kept), None)

    return loss


def uses_in_a_round(name, **options):
    """Return the uses of keys in two epochs of a client with three examples, in batches of two."""
    model = ADAPTED if name in ADAPTERS_ONLY else FEATURES
    loss, work = dropout_loss(model), {"local_epochs": 2, "batch_size": 2}
    algorithm = make(name, model, 0.1, 2, 2, loss=loss, **work, **options)
    data = labelled()
    window = ClientData(
        jnp.asarray(data.x), jnp.asarray(data.y), start=jnp.int32(1), size=jnp.int32(3),
        positions=jnp.arange(3, dtype=jnp.int32), mean=jnp.float32(0), std=jnp.float32(1),
        client_id=jnp.int32(1),
    )  # fmt: skip
    server, client = algorithm.init(model.init(None, None), jax.random.key(0))
    received = algorithm.deliver(algorithm.broadcast(server), window.client_id)
    for found in USES:
        found.clear()
    key = jax.random.key(1, impl=RECORDED)
    jax.block_until_ready(jax.jit(algorithm.client_update)(received, client, window, key))
    jax.effects_barrier()  # callbacks have run
    return USES


CASES = {name: (name, {}) for name in algorithms.NAMES}
CASES["perfedavg, Hessian-free"] = "perfedavg", {"hessian_free": True}
CASES["fedbn"] = "fedbn", {"norms": ("head",)}
LOSS_OF_ITS_OWN = (
    *("feddbe", "fedpac", "fedproto", "fedrod", "gpfl", "fedntd", "fedem", "knnper", "fml"),
    *("fedas", "fedgh"),
)
"""Those that draw no random numbers in their losses."""


# They draw nothing of their own, like FedAvg.
SLOW = (
    *("ffa_lora", "fedsa_lora", "rolora", "head_only", "moon", "fedntd", "cfl", "knnper", "fedgh"),
    *("fml", "fedphp", "fedcac", "fesem", "pfedhn", "fedem", "fedfomo", "apple", "pfedsim"),
)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES]
)
def test_no_key_is_used_twice(case):
    name, options = CASES[case]
    drawn, made, parents = uses_in_a_round(name, **options)
    # An order for each of two epochs, and where the loss draws one in each of four steps.
    assert len(drawn) >= (2 if name in LOSS_OF_ITS_OWN else 2 + 4), drawn
    assert max(drawn.values()) == ON_PURPOSE.get(case, 1), drawn.most_common(3)
    assert max(made.values()) == (2 if name == "ditto" else 1), made.most_common(3)
    assert not drawn.keys() & parents


def test_ditto_trains_both_models_on_the_same_batches():
    assert set(uses_in_a_round("ditto").drawn.values()) == {2}
