"""The averages that a client keeps can be stored in half the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import flat, noise, p_of, tree

from pflalign_jax.align import align_transform, new_round


def run(memory_dtype, rounds=4, steps=50):
    """Return the updates' path and the last state under noisy gradients around a drift."""
    tx = align_transform(1.0, memory_dtype=memory_dtype)
    params = tree(noise(0))
    delta, state, path = tree(noise(1)), tx.init(params), []

    @jax.jit
    def step(state, grads):
        return tx.update(grads, state, direction=delta, num_steps=steps)

    for r in range(rounds):
        state = new_round(state)
        for t in range(steps):
            grads = tree(noise(1000 * r + t) + np.linspace(0, 2, len(flat(params))))
            updates, state = step(state, grads)
            path.append(flat(updates))
    return np.array(path), state


def test_bfloat16_memory_stays_close():
    path, state = run("bfloat16")
    expected, exact = run(None)
    assert {a.dtype for a in jax.tree.leaves((state.v, state.u))} == {jnp.dtype("bfloat16")}
    assert {a.dtype for a in jax.tree.leaves((state.m, p_of(state)))} == {jnp.dtype("float32")}
    error = flat(p_of(state)) / flat(p_of(exact)) - 1
    assert 1e-5 < np.sqrt(np.mean(error**2)) < 0.02
    assert np.linalg.norm(path - expected) < 0.01 * np.linalg.norm(expected)


def test_float32_is_the_default():
    _, state = run("float32", rounds=1, steps=3)
    _, default = run(None, rounds=1, steps=3)
    jax.tree.map(np.testing.assert_array_equal, state, default)


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 1e3])
def test_bfloat16_has_the_range_for_small_and_large_gradients(scale):
    grads = scale * jax.random.normal(jax.random.key(1), (100, 64))
    means = []
    for memory_dtype in (None, "bfloat16"):
        tx = align_transform(memory_dtype=memory_dtype)
        step = lambda s, g, tx=tx: (tx.update(g, s)[1], None)  # noqa: E731
        state, _ = jax.lax.scan(step, tx.init(grads[0]), grads)
        means.append(p_of(state).mean())
    np.testing.assert_allclose(means[1], means[0], rtol=0.01)


def test_float16_is_refused_as_squares_leave_its_range():
    with pytest.raises(ValueError, match=r"memory_dtype='float16' .* range .*'bfloat16'"):
        align_transform(memory_dtype="float16")


@pytest.mark.parametrize("value", ["int8", "half", 16])
def test_other_dtypes_are_refused(value):
    with pytest.raises(ValueError, match=f"memory_dtype={value!r}"):
        align_transform(memory_dtype=value)
