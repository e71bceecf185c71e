"""The transform follows the recursion over rounds: v, P, direction persist, m does not."""

import jax
import numpy as np
import optax
import pytest
from probes import CORRECTIONS, SIZE, flat, noise, p_of, tree
from reference import first_memory, local_round

from pflalign_jax.align import align_transform, direction, new_round, realign

STEPS = (5, 2, 7, 1, 4)  # T of each round
CURVATURE = np.linspace(0.2, 1.5, SIZE)
CENTRE = noise(1, scale=2.0)
NOISE = noise(2, len(STEPS), max(STEPS), scale=0.7)
SHIFT = noise(3, len(STEPS), scale=0.3)  # what the other clients do to the global model


def compare(dtype, tolerance, realignment=True, noisy=1.0, **options):
    """Run both for all rounds; each side feeds on its own trajectory."""

    def gradient(w, r, t):
        return CURVATURE * (w - CENTRE) + noisy * NOISE[r, t]

    tx = align_transform(**options)
    extra = (lambda d, t: {"direction": d, "num_steps": t}) if realignment else lambda d, t: {}
    memory, w = first_memory(SIZE), noise(0)
    delta = tree(np.zeros(SIZE), dtype)
    state = tx.init(delta)

    def agree(actual, expected, what):
        np.testing.assert_allclose(
            flat(actual), expected, rtol=tolerance, atol=tolerance, err_msg=what
        )

    for r, num_steps in enumerate(STEPS):
        steps, memory = local_round(
            w,
            memory,
            lambda x, t, r=r: gradient(x, r, t),
            num_steps,
            realignment=realignment,
            **options,
        )
        received = tree(w, dtype)
        params = realign(received, delta) if realignment else received
        state = new_round(state)
        for t, step in enumerate(steps):
            grads = tree(gradient(flat(params), r, t), dtype)
            updates, state = tx.update(grads, state, **extra(delta, num_steps))
            params = optax.apply_updates(params, updates)
            where = f"round {r}, step {t}"
            agree(state.m, step.m, f"m, {where}")
            agree(state.v, step.v, f"v, {where}")
            agree(p_of(state), step.p, f"P, {where}")
            agree(params, step.w, f"w, {where}")
        delta = direction(params, received)
        agree(delta, memory.delta, f"direction, round {r}")
        assert state.count == memory.count
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((params, state.v, delta)))
        w = w + 0.4 * memory.delta + SHIFT[r]
        assert max(step.p.max() for step in steps) <= 1  # past 1: the last test below
    assert np.abs(memory.delta).max() > 1e-2  # the directions mattered


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_float32(correction, precondition):
    compare(np.float32, 1e-5, correction=correction, precondition=precondition, learning_rate=0.5)


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_float64(correction, precondition):
    with jax.enable_x64(True):
        compare(
            np.float64, 1e-8, correction=correction, precondition=precondition, learning_rate=0.5
        )


@pytest.mark.parametrize("precondition", [True, False])
def test_no_realignment(precondition):
    with jax.enable_x64(True):
        compare(np.float64, 1e-8, realignment=False, precondition=precondition, learning_rate=0.5)


@pytest.mark.parametrize(("beta", "learning_rate"), [(0.0, 0.1), (0.5, 0.1), (0.99, 3.0)])
def test_other_decays(beta, learning_rate):
    with jax.enable_x64(True):
        compare(np.float64, 1e-8, noisy=4.0, beta=beta, learning_rate=learning_rate)


def test_a_large_eps_in_the_correction():
    """A large eps shrinks z; P is not used, as the two ways to write it differ by eps / v."""
    with jax.enable_x64(True):
        tx = align_transform(learning_rate=0.0, eps=0.1)
        delta, grads = noise(4), noise(5, 3)
        steps, _ = local_round(
            np.zeros(SIZE),
            first_memory(SIZE)._replace(delta=delta),
            lambda _, t: grads[t],
            3,
            learning_rate=0.0,
            eps=0.1,
        )
        state = tx.init(tree(delta, np.float64))
        for t, step in enumerate(steps):
            updates, state = tx.update(
                tree(grads[t], np.float64), state, direction=tree(delta, np.float64), num_steps=3
            )
            np.testing.assert_allclose(-3 * flat(updates) / delta, step.gamma, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_where_the_recursion_leaves_the_unit_interval(beta):
    """After gradients vanish the recursion climbs towards 1 + beta; the library stays at 1."""
    grads = np.concatenate([np.ones((60, SIZE)), np.zeros((60, SIZE)), noise(6, 40)])
    grads[60:120, ::2] = noise(7, 60)[:, ::2]
    steps, _ = local_round(
        np.zeros(SIZE), first_memory(SIZE), lambda _, t: grads[t], len(grads), beta=beta
    )
    with jax.enable_x64(True):
        tx = align_transform(beta=beta, eps=1e-12)
        state = tx.init(tree(np.zeros(SIZE), np.float64))
        for g, step in zip(grads, steps, strict=True):
            _, state = tx.update(tree(g, np.float64), state)
            if step.v.min() > 1e-3:
                np.testing.assert_allclose(flat(p_of(state)), np.minimum(step.p, 1), rtol=1e-8)
    assert max(step.p.max() for step in steps) > 1.2
