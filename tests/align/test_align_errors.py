"""Every refusal quotes the bad value, or the path of the first leaf that does not match."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import noise, tree

from pflalign_jax.align import align_transform, direction, realign

KERNEL, BIAS = "['dense']['kernel']", "['dense']['bias']"


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"beta": -0.125}, "beta", "-0.125"),
        ({"beta": 1.0}, "beta", "1.0"),
        ({"beta": 1.5}, "beta", "1.5"),
        ({"beta": float("nan")}, "beta", "nan"),
        ({"eps": 0.0}, "eps", "0.0"),
        ({"eps": -0.0625}, "eps", "-0.0625"),
        ({"correction": "probabilty"}, "correction", "probabilty"),
        ({"correction": ""}, "correction", "''"),
        ({"correction": 1.25}, "correction", "1.25"),
        ({"correction": -0.25}, "correction", "-0.25"),
        ({"correction": float("nan")}, "correction", "nan"),
        ({"learning_rate": -0.375}, "learning_rate", "-0.375"),
        ({"learning_rate": float("nan")}, "learning_rate", "nan"),
    ],
)
def test_the_factory_quotes_what_it_refuses(options, name, value):
    with pytest.raises(ValueError) as error:
        align_transform(**options)
    assert name in str(error.value)
    assert value in str(error.value)


def test_the_factory_says_which_corrections_there_are():
    with pytest.raises(ValueError, match=r"(?s)probability.*sign.*none"):
        align_transform(correction="other")


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": 0},
        {"beta": 0.999},
        {"eps": 1e-30},
        {"correction": 0},
        {"correction": 1},
        {"correction": np.float32(0.5)},
        {"learning_rate": 0.0},
        {"learning_rate": np.float32(0.5)},
        {"learning_rate": jnp.asarray(0.5)},
    ],
)
def test_the_edges_of_what_is_allowed(options):
    tx = align_transform(**options)
    grads = tree(noise(0))
    updates, _ = tx.update(grads, tx.init(grads), direction=tree(noise(1)), num_steps=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_a_direction_needs_the_number_of_steps():
    tx = align_transform()
    grads = tree(noise(0))
    with pytest.raises(ValueError, match="num_steps"):
        tx.update(grads, tx.init(grads), grads, direction=grads)


def broken(how):
    """Return a tree that does not match `tree(...)`, and the path of the first difference."""
    values = tree(noise(1))
    bias, kernel = values["dense"]["bias"], values["dense"]["kernel"]
    dense = {
        "missing": ({"bias": bias}, KERNEL),
        "extra": ({"bias": bias, "kernel": kernel, "moved": bias}, "['dense']['moved']"),
        "renamed": ({"bias": bias, "kernels": kernel}, KERNEL),
        "transposed": ({"bias": bias, "kernel": kernel.T}, KERNEL),
        "longer": ({"bias": jnp.ones((5,)), "kernel": kernel}, BIAS),
        "broadcast": ({"bias": bias, "kernel": kernel[:1]}, KERNEL),
        "scalar": ({"bias": bias[0], "kernel": kernel}, BIAS),
        "two": ({"bias": bias[:2], "kernel": kernel.T}, BIAS),
    }
    replaced, path = dense[how]
    return {**values, "dense": replaced}, path


HOWS = ["missing", "extra", "renamed", "transposed", "longer", "broadcast", "scalar", "two"]


def refused(call, path):
    with pytest.raises(ValueError) as error:
        call()
    assert path in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("how", HOWS)
def test_update_quotes_the_path_in_the_direction(how, jit):
    tx = align_transform()
    grads = tree(noise(0))
    bad, path = broken(how)
    update = lambda d: tx.update(grads, tx.init(grads), grads, direction=d, num_steps=2)  # noqa: E731
    message = refused(lambda: (jax.jit(update) if jit else update)(bad), path)
    assert how != "two" or KERNEL not in message  # the first leaf alone


@pytest.mark.parametrize("how", HOWS)
def test_update_quotes_the_path_in_the_gradients(how):
    tx = align_transform()
    bad, path = broken(how)
    refused(lambda: tx.update(bad, tx.init(tree(noise(0)))), path)


@pytest.mark.parametrize("how", HOWS)
def test_realign_quotes_the_path(how):
    bad, path = broken(how)
    refused(lambda: realign(tree(noise(0)), bad), path)


@pytest.mark.parametrize("how", HOWS)
def test_direction_quotes_the_path(how):
    bad, path = broken(how)
    refused(lambda: direction(bad, tree(noise(0))), path)


def test_a_global_model_cannot_be_the_stacked_one():
    refused(lambda: realign(tree(noise(0, 3)), tree(noise(1))), BIAS)
    refused(lambda: direction(tree(noise(1)), tree(noise(0, 3))), BIAS)


def test_stacked_leaves_have_the_same_number_of_clients():
    delta = tree(noise(1, 3))
    delta["dense"]["kernel"] = delta["dense"]["kernel"][:2]
    refused(lambda: realign(tree(noise(0)), delta), KERNEL)
    refused(lambda: direction(delta, tree(noise(0))), KERNEL)


def test_a_stacked_direction_is_not_one_client_s():
    tx = align_transform()
    grads = tree(noise(0))
    refused(
        lambda: tx.update(grads, tx.init(grads), direction=tree(noise(1, 3)), num_steps=2), BIAS
    )


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"eps": float("inf")}, "eps=inf"),
        ({"eps": 1e-50}, "eps=1e-50"),
        ({"correction": True}, "correction=True"),
    ],
)
def test_values_that_only_look_allowed_are_refused(options, quoted):
    with pytest.raises(ValueError, match=quoted):
        align_transform(**options)


@pytest.mark.parametrize("value", [0, -3, 3.7, float("nan"), float("inf"), np.float32(0.5)])
def test_a_number_of_steps_that_is_none_is_refused(value):
    tx = align_transform()
    ones = jnp.ones(2)
    with pytest.raises(ValueError, match=re.escape(f"num_steps={value!r}")):
        tx.update(ones, tx.init(ones), direction=ones, num_steps=value)


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), jnp.asarray(3), jnp.asarray(3.0)])
def test_numbers_of_steps(value):
    tx = align_transform(0.0, correction=1.0)
    ones = jnp.ones(2)
    updates, _ = tx.update(ones, tx.init(ones), direction=ones, num_steps=value)
    np.testing.assert_allclose(updates, -1 / 3, rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shape", [(2,), (1,), (3, 2)])
def test_one_number_of_steps_per_client_needs_vmap(shape, jit):
    """It would divide along the last axis, the weights, and not along the clients."""
    tx = align_transform(0.0, correction=1.0)
    ones = jnp.ones((2, 2))
    update = lambda n: tx.update(ones, tx.init(ones), direction=ones, num_steps=n)[0]  # noqa: E731
    with pytest.raises(ValueError, match=rf"num_steps has shape {re.escape(str(shape))}.*vmap"):
        (jax.jit(update) if jit else update)(jnp.full(shape, 2))


def test_one_number_of_steps_per_client_with_vmap():
    tx = align_transform(0.0, correction=1.0)
    ones, state = jnp.ones((2, 2)), jax.vmap(tx.init)(jnp.ones((2, 2)))
    updates, _ = jax.vmap(tx.update)(ones, state, direction=ones, num_steps=jnp.array([1, 100]))
    np.testing.assert_allclose(updates, [[-1, -1], [-0.01, -0.01]], rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ["learning_rate", "beta", "eps", "correction"])
def test_one_hyperparameter_per_client_needs_vmap(name, jit):
    make = lambda value: align_transform(**{name: value}).init(jnp.ones(2)).v  # noqa: E731
    with pytest.raises(ValueError, match=rf"{name} has shape \(2,\).*vmap"):
        (jax.jit(make) if jit else make)(jnp.full(2, 0.5))


def test_a_schedule_gives_one_number():
    tx = align_transform(lambda count: 0.1 / (1 + count))
    grads = jnp.ones((2, 2))
    state = jax.vmap(tx.init)(grads)  # stacked, with a count per client, but no vmap below
    with pytest.raises(ValueError, match=r"learning_rate has shape \(2,\).*vmap"):
        tx.update(grads, state)
    updates, _ = jax.vmap(tx.update)(grads, state)
    assert updates.shape == (2, 2)


def test_a_required_direction():
    tx = align_transform(require_direction=True)
    ones = jnp.ones(2)
    expected, _ = align_transform().update(ones, tx.init(ones), direction=ones, num_steps=2)
    updates, _ = tx.update(ones, tx.init(ones), direction=ones, num_steps=2)
    np.testing.assert_array_equal(updates, expected)
    with pytest.raises(ValueError, match="no direction has arrived"):
        tx.update(ones, tx.init(ones))
    with pytest.raises(ValueError, match="no direction has arrived"):
        tx.update(ones, tx.init(ones), num_steps=2)


def test_a_stored_state_must_start_a_round_first():
    tx = align_transform()
    ones = jnp.ones(2)
    stored = tx.init(ones)._replace(m=None)
    with pytest.raises(ValueError, match="new_round"):
        tx.update(ones, stored)
