"""What any correct implementation satisfies, with numbers worked out by hand where possible."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import CORRECTIONS, assert_trees_equal, flat, noise, p_of, tree
from reference import first_memory, local_round

from pflalign_jax.align import align_transform


def run(tx, grads, delta=None, state=None):
    """Apply a [T, N] array of gradients as one round; return the updates [T, N] and the state."""
    grads = jnp.asarray(grads, jnp.float32)
    state = tx.init(grads[0]) if state is None else state
    extra = {} if delta is None else {"direction": jnp.asarray(delta, jnp.float32)}

    def step(state, g):
        updates, state = tx.update(g, state, num_steps=len(grads), **extra)
        return state, updates

    if len(grads) > 10:
        state, updates = jax.jit(lambda s: jax.lax.scan(step, s, grads))(state)
    else:  # compiling would take longer
        seen = []
        for g in grads:
            state, updates = step(state, g)
            seen.append(updates)
        updates = jnp.stack(seen)
    return np.asarray(updates, np.float64), state


def test_first_step_ever():
    tx = align_transform(learning_rate=0.2, beta=0.9)
    params = {"w": jnp.array(1.0)}
    grads, delta = {"w": jnp.array(2.0)}, {"w": jnp.array(0.4)}
    updates, state = tx.update(grads, tx.init(params), params, direction=delta, num_steps=5)
    gamma = 0.5 + 0.5 * math.erf(0.2 / math.sqrt(2 * 0.36))
    np.testing.assert_allclose(state.m["w"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(state.v["w"], 0.4, rtol=1e-6)
    np.testing.assert_allclose(p_of(state)["w"], 0.01, rtol=1e-6)
    np.testing.assert_allclose(
        optax.apply_updates(params, updates)["w"], 1 - 0.2 * 0.01 * 2 - gamma * 0.4 / 5, rtol=1e-6
    )
    assert state.count == 1
    assert state.count.dtype == jnp.int32
    assert state.count.shape == ()


def test_the_initial_state_is_zero():
    state = align_transform().init(tree(noise(0)))
    assert state.count == 0
    zeros = tree(0 * noise(0))
    for moment in (state.m, state.v, p_of(state)):
        assert_trees_equal(moment, zeros)


@pytest.mark.parametrize("num_steps", [1, 3, 8])
@pytest.mark.parametrize("precondition", [True, False])
def test_constant_one_removes_the_direction_exactly(num_steps, precondition):
    grads, delta = noise(0, num_steps), noise(1)
    options = {"learning_rate": 0.1, "precondition": precondition}
    with_it, _ = run(align_transform(correction=1.0, **options), grads, delta)
    without, _ = run(align_transform(correction="none", **options), grads, delta)
    np.testing.assert_allclose((without - with_it).sum(0), delta, rtol=1e-6, atol=1e-6)
    only, _ = run(align_transform(correction=1.0, **options), 0 * grads, delta)
    np.testing.assert_allclose(-only.sum(0), delta, rtol=1e-6)


def test_constant_half_removes_half():
    updates, _ = run(align_transform(correction=0.5), np.zeros((4, 17)), noise(1))
    np.testing.assert_allclose(-updates.sum(0), noise(1) / 2, rtol=1e-6)


@pytest.mark.parametrize("correction", ["probability", "sign"])
def test_a_coordinate_without_gradient(correction):
    grads, delta = noise(0, 6), noise(1)
    grads[:, ::2] = 0
    updates, state = run(align_transform(correction=correction), grads, delta)
    assert np.isfinite(updates).all()
    np.testing.assert_array_equal(state.v[::2], 0)
    np.testing.assert_array_equal(p_of(state)[::2], 0)
    assert (np.asarray(state.v)[1::2] > 0).all()
    half = -0.5 * np.asarray(delta, np.float32)[::2] / 6
    np.testing.assert_allclose(updates[:, ::2], np.broadcast_to(half, (6, 9)), rtol=1e-6)


def test_the_correction_undoes_what_descent_would_undo():
    """A gradient with the direction's sign takes more than half of it back, the other less."""
    grads = np.tile([1.0, -1.0, 1.0, -1.0], (3, 1))
    delta = np.array([0.5, 0.5, -0.5, -0.5])
    updates, _ = run(align_transform(learning_rate=0.0), grads, delta)
    gamma = -3 * updates / delta
    assert (gamma[:, [0, 3]] > 0.5).all()
    assert (gamma[:, [1, 2]] < 0.5).all()


def test_the_correction_is_not_scaled_by_the_learning_rate():
    grads, delta = noise(0, 3), noise(1)
    small, _ = run(align_transform(learning_rate=0.0), grads, delta)
    steps, _ = local_round(
        np.zeros(17),
        first_memory(17)._replace(delta=delta),
        lambda _, t: grads[t],
        3,
        learning_rate=0.0,
    )
    gamma = np.stack([step.gamma for step in steps])
    np.testing.assert_allclose(small, -gamma * delta / 3, rtol=1e-5, atol=1e-7)


def test_constant_gradients_drive_p_to_one():
    grads = np.tile(noise(0), (300, 1))
    updates, state = run(align_transform(learning_rate=1.0), grads)
    np.testing.assert_allclose(p_of(state), 1, rtol=1e-5)
    np.testing.assert_allclose(updates[-1], -grads[-1], rtol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_white_noise_drives_p_to_its_level(beta):
    limit = (1 - beta) / (1 + beta)
    rng = np.random.default_rng(0)
    signs = 3.0 * rng.choice([-1.0, 1.0], size=(120, 8_000))  # v is 9 in the end: P is m^2 / 9
    _, state = run(align_transform(beta=beta), signs)
    assert np.mean(p_of(state)) == pytest.approx(limit, rel=0.03)
    normal = rng.standard_normal((120, 8_000))
    _, state = run(align_transform(beta=beta), normal)
    ratio = np.mean(np.asarray(p_of(state)) * np.asarray(state.v)) / np.mean(state.v)
    assert ratio == pytest.approx(limit, rel=0.03)


def trajectory(tx, jit, **extra):
    """Fit a line with minibatches; the gradients depend on the parameters."""
    x, y = jnp.asarray(noise(0, 6), jnp.float32), jnp.asarray(noise(1, 6)[:, :2], jnp.float32)
    params = {"w": jnp.zeros((17, 2)), "b": jnp.ones((2,))}

    def step(params, state, i):
        loss = lambda p: jnp.mean((x[i] @ p["w"] + p["b"] - y[i]) ** 2)  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    state, seen = tx.init(params), []
    for i in range(12):
        params, state = step(params, state, i % 6)
        seen.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("learning_rate", [0.05, optax.linear_schedule(0.1, 0.01, 10)])
def test_sgd_bit_for_bit(learning_rate, jit):
    plain = trajectory(optax.sgd(learning_rate), jit)
    assert_trees_equal(trajectory(align_transform(learning_rate, precondition=False), jit), plain)
    assert np.abs(plain["w"][-1]).max() > 1e-3


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_zero_direction_changes_nothing(correction):
    grads = noise(0, 5)
    tx = align_transform(correction=correction)
    np.testing.assert_array_equal(run(tx, grads, np.zeros(17))[0], run(tx, grads)[0])


def test_no_correction_keeps_the_direction():
    grads = noise(0, 5)
    tx = align_transform(correction="none")
    np.testing.assert_array_equal(run(tx, grads, noise(1))[0], run(tx, grads)[0])


def test_constant_zero_is_none():
    grads, delta = noise(0, 5), noise(1)
    zero, _ = run(align_transform(correction=0.0), grads, delta)
    none, _ = run(align_transform(correction="none"), grads, delta)
    np.testing.assert_array_equal(zero, none)


def test_bare_call_is_the_preconditioned_step():
    grads = tree(noise(0))
    tx = align_transform()
    updates, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(flat(updates), -flat(p_of(state)) * flat(grads), rtol=1e-6)
