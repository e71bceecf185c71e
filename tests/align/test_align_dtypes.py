"""Dtypes: averages in float32 at least, updates in the gradients' dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import SIZE, assert_trees_close, assert_trees_equal, flat, noise, p_of, tree
from reference import first_memory, local_round

from pflalign_jax.align import align_transform, direction, new_round, realign

LOW = [jnp.bfloat16, jnp.float16]


def dtypes(*trees):
    return {leaf.dtype for leaf in jax.tree.leaves(trees)}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("correction", ["probability", "sign", 0.5, "none"])
def test_low_precision_parameters(dtype, correction):
    tx = align_transform(0.5, correction=correction)
    delta = tree(noise(1), dtype)
    state, params = tx.init(delta), tree(noise(2), dtype)
    grads = [tree(row, dtype) for row in noise(0, 4)]
    steps, _ = local_round(
        np.zeros(SIZE),
        first_memory(SIZE)._replace(delta=flat(delta)),
        lambda _, t: flat(grads[t]),
        4,
        learning_rate=0.5,
        correction=correction,
    )
    before = flat(delta)
    for g, step in zip(grads, steps, strict=True):
        updates, state = tx.update(g, state, params, direction=delta, num_steps=4)
        params = optax.apply_updates(params, updates)
        assert dtypes(updates, params) == {jnp.dtype(dtype)}
        assert dtypes(state.m, state.v, p_of(state)) == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(flat(state.m), step.m, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flat(state.v), step.v, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flat(p_of(state)), step.p, rtol=1e-4, atol=1e-6)
        # one rounding to the low dtype at the end, not one per operation
        ulp = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(flat(updates), step.w - before, rtol=0.51 * ulp, atol=1e-6)
        before = step.w
    assert dtypes(new_round(state).m) == {jnp.dtype(jnp.float32)}


def test_squares_are_taken_in_float32():
    """The square of 1e-4 is below float16's range."""
    params = {"w": jnp.zeros((3,), jnp.float16)}
    grads = {"w": jnp.full((3,), 1e-4, jnp.float16)}
    tx = align_transform()
    _, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(state.v["w"], 1e-9, rtol=1e-3)
    np.testing.assert_allclose(p_of(state)["w"], 0.01, rtol=2e-3)


def test_mixed_dtypes():
    params = {"a": jnp.ones((2,), jnp.bfloat16), "b": jnp.ones((2,), jnp.float32)}
    delta = jax.tree.map(lambda x: 0.5 * x, params)
    tx = align_transform()
    updates, state = tx.update(params, tx.init(params), params, direction=delta, num_steps=2)
    assert updates["a"].dtype == jnp.bfloat16
    assert updates["b"].dtype == jnp.float32
    assert dtypes(state.m, state.v) == {jnp.dtype(jnp.float32)}


def test_float32_direction_for_low_precision_gradients():
    grads, delta = tree(noise(0), jnp.bfloat16), tree(noise(1))
    tx = align_transform(0.0, correction=1.0)
    updates, _ = tx.update(grads, tx.init(grads), grads, direction=delta, num_steps=3)
    assert dtypes(updates) == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(flat(updates), -noise(1) / 3, rtol=2**-8)


def test_float64_under_x64():
    with jax.enable_x64(True):
        params = tree(noise(0), np.float64)
        tx = align_transform(optax.linear_schedule(1.0, 0.5, 10))
        delta = tree(noise(1), np.float64)
        updates, state = jax.jit(
            lambda g, s: tx.update(g, s, direction=delta, num_steps=jnp.asarray(3))
        )(params, tx.init(params))
        assert dtypes(updates, state.m, state.v, p_of(state)) == {jnp.dtype(np.float64)}
        assert state.count.dtype == jnp.int32
        assert dtypes(new_round(state).m) == {jnp.dtype(np.float64)}


def test_float32_parameters_under_x64_stay_float32():
    with jax.enable_x64(True):
        params = tree(noise(0), np.float32)
        tx = align_transform(np.float64(0.5), correction=0.3)
        updates, state = tx.update(
            params, tx.init(params), params, direction=params, num_steps=np.int64(3)
        )
        assert dtypes(updates, state.m, state.v, p_of(state)) == {jnp.dtype(np.float32)}


def test_low_precision_scan_keeps_the_state_s_types():
    delta = tree(noise(1), jnp.bfloat16)
    tx = align_transform(0.5)
    state, updates = jax.lax.scan(
        lambda s, g: tx.update(g, s, direction=delta, num_steps=4)[::-1],
        tx.init(delta),
        tree(noise(0, 4), jnp.bfloat16),
    )
    assert dtypes(updates) == {jnp.dtype(jnp.bfloat16)}
    assert state.count == 4


@pytest.mark.parametrize("dtype", LOW)
def test_realign_and_direction_keep_a_low_dtype(dtype):
    params, delta = tree(noise(0), dtype), tree(noise(1), dtype)
    local = realign(params, delta)
    back = direction(local, params)
    assert dtypes(local, back) == {jnp.dtype(dtype)}
    expected = jax.tree.map(jnp.add, params, delta)
    assert_trees_close(local, expected, rtol=float(jnp.finfo(dtype).eps))
    assert_trees_equal(back, jax.tree.map(jnp.subtract, local, params))
