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


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", LOW)
def test_injected_eps_of_low_precision_parameters(dtype, jit):
    """optax casts hyperparameters to the parameters' dtype, and float16 rounds 1e-12 to 0."""
    tx = optax.inject_hyperparams(align_transform)(learning_rate=0.5)
    params, grads = jnp.ones(2, dtype), jnp.array([0.5, 0.0], dtype)
    init, update = (jax.jit(tx.init), jax.jit(tx.update)) if jit else (tx.init, tx.update)
    state = init(params)
    for _ in range(2):
        updates, state = update(grads, state, params, direction=jnp.ones(2, dtype), num_steps=4)
    plain = align_transform(0.5)
    expected, reference = updates, plain.init(params)
    for _ in range(2):
        expected, reference = plain.update(
            grads, reference, params, direction=jnp.ones(2, dtype), num_steps=4
        )
    # beta is rounded, too: 0.8984 in bfloat16
    np.testing.assert_allclose(flat(updates), flat(expected), rtol=0.02)
    assert updates[1] == -0.125  # no gradient, γ = ½
    assert p_of(state)[1] == 0


def test_an_injected_eps_below_zero_is_refused_in_float16_too():
    tx = optax.inject_hyperparams(align_transform)(eps=-0.5)
    with pytest.raises(ValueError, match=r"eps=.*-0\.5"):
        tx.init(jnp.ones(2, jnp.float16))


def test_python_floats():
    """As for optax.adam, a parameter may be a number of Python."""
    tx = align_transform(0.2)
    updates, state = tx.update(2.0, tx.init(1.0), 1.0, direction=0.4, num_steps=5)
    ones = jnp.ones(())
    expected, expected_state = tx.update(2 * ones, tx.init(ones), direction=0.4 * ones, num_steps=5)
    assert_trees_equal(updates, expected)
    assert_trees_equal(state, expected_state)
    np.testing.assert_allclose(optax.apply_updates(1.0, updates), 0.9456, rtol=1e-4)
    assert realign(1.0, 0.5) == 1.5 and direction(1.5, 1.0) == 0.5


def test_numpy_arrays():
    tx = align_transform(0.2)
    grads, delta = tree(noise(0)), tree(noise(1))
    expected = tx.update(grads, tx.init(grads), direction=delta, num_steps=5)
    grads, delta = (jax.tree.map(np.asarray, t) for t in (grads, delta))
    assert_trees_equal(tx.update(grads, tx.init(grads), direction=delta, num_steps=5), expected)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.bool])
def test_other_than_real_floating_parameters_are_refused(dtype, jit):
    tx = align_transform()
    bad = {"a": jnp.ones(2), "b": jnp.ones(2, dtype)}
    good = {"a": jnp.ones(2), "b": jnp.ones(2)}
    init, update = (jax.jit(tx.init), jax.jit(tx.update)) if jit else (tx.init, tx.update)
    with pytest.raises(ValueError, match=rf"parameters\['b'\] has dtype {jnp.dtype(dtype)}"):
        init(bad)
    with pytest.raises(ValueError, match=rf"gradients\['b'\] has dtype {jnp.dtype(dtype)}"):
        update(bad, init(good))


def test_gradients_of_integers_are_refused():
    params = {"a": 1.0, "n": jnp.ones(2, jnp.int32)}
    grads = jax.grad(lambda p: p["a"] * p["n"].sum(), allow_int=True)(params)
    with pytest.raises(ValueError, match=r"gradients\['n'\] has dtype .*float0"):
        align_transform().update(grads, align_transform().init({"a": 1.0, "n": jnp.ones(2)}))


def test_real_and_imaginary_parts_as_two_leaves():
    """What the refusal of complex parameters advises: P of noise is that of real noise."""
    tx = align_transform()
    re, im = jax.random.normal(jax.random.key(0), (2, 200, 50))
    step = lambda s, g: (tx.update(g, s)[1], None)  # noqa: E731
    state, _ = jax.lax.scan(step, tx.init({"re": re[0], "im": im[0]}), {"re": re, "im": im})
    assert 0.03 < flat(p_of(state)).mean() < 0.07


@pytest.mark.parametrize("dtype", LOW)
def test_realign_and_direction_keep_a_low_dtype(dtype):
    params, delta = tree(noise(0), dtype), tree(noise(1), dtype)
    local = realign(params, delta)
    back = direction(local, params)
    assert dtypes(local, back) == {jnp.dtype(dtype)}
    expected = jax.tree.map(jnp.add, params, delta)
    assert_trees_close(local, expected, rtol=float(jnp.finfo(dtype).eps))
    assert_trees_equal(back, jax.tree.map(jnp.subtract, local, params))
