"""Properties over drawn gradients: bounds, symmetry, magnitudes from 1e-30 to 1e15, zeros."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import p_of
from reference import first_memory, local_round

from pflalign_jax.align import align_transform, new_round

WIDTH = 6
FREE = align_transform(learning_rate=1.0)
STILL = align_transform(learning_rate=0.0)  # the update is the correction alone
update = jax.jit(lambda g, s, d, t: FREE.update(g, s, direction=d, num_steps=t))
correct = jax.jit(lambda g, s, d, t: STILL.update(g, s, direction=d, num_steps=t))
fresh = jax.jit(new_round)
settled = settings(deadline=None, derandomize=True, database=None, max_examples=40)


def magnitudes(low, high):
    """Draw signed numbers whose exponent is uniform, and zeros."""
    return st.builds(
        lambda sign, exponent: sign * 10.0**exponent,
        st.sampled_from([-1.0, 0.0, 1.0]),
        st.floats(low, high),
    )


def vectors(low, high):
    return st.lists(magnitudes(low, high), min_size=WIDTH, max_size=WIDTH)


def rounds(low, high):
    """Draw 1 to 3 rounds of 1 to 6 gradients."""
    return st.lists(st.lists(vectors(low, high), min_size=1, max_size=6), min_size=1, max_size=3)


def walk(update, drawn, delta):
    """Yield (round's length, gradient, update, state) for every step of every round."""
    delta = jnp.asarray(delta, jnp.float32)
    state = FREE.init(delta)
    for grads in drawn:
        state = fresh(state)
        for g in grads:
            updates, state = update(jnp.asarray(g, jnp.float32), state, delta, len(grads))
            yield len(grads), g, np.asarray(updates, np.float64), state


def factors(drawn, delta):
    """Read gamma of every step off the updates; delta has no zeros."""
    float_delta = np.asarray(delta, np.float32).astype(np.float64)
    seen = [-t * updates / float_delta for t, _, updates, _ in walk(correct, drawn, delta)]
    return np.stack(seen)


@settled
@given(rounds(-30, 15), vectors(-30, 15))
def test_everything_stays_finite(drawn, delta):
    for _, _, updates, state in walk(update, drawn, delta):
        assert np.isfinite(updates).all()
        for moment in (state.m, state.v, p_of(state)):
            assert np.isfinite(moment).all()


@settled
@given(rounds(-30, 15), vectors(-3, 3))
def test_p_is_a_shrinkage(drawn, delta):
    for _, g, _, state in walk(update, drawn, delta):
        p = np.asarray(p_of(state))
        assert (p >= 0).all(), g
        assert (p <= 1 + 1e-6).all(), g


@settled
@given(vectors(-2, 2), st.integers(1, 80), st.lists(vectors(-9, -4), max_size=5))
def test_p_is_a_shrinkage_after_gradients_vanish(constant, repeats, small):
    """m outlives v then, which is where an average of m^2 could overtake one of g^2."""
    state = FREE.init(jnp.zeros(WIDTH))
    for g in [constant] * repeats + small + [[0.0] * WIDTH] * 20:
        _, state = update(jnp.asarray(g, jnp.float32), state, jnp.zeros(WIDTH), 1)
        assert (np.asarray(p_of(state)) <= 1 + 1e-6).all()


@settled
@given(rounds(-30, 15), st.lists(magnitudes(-15, 15).filter(bool), min_size=WIDTH, max_size=WIDTH))
def test_gamma_is_a_probability(drawn, delta):
    gamma = factors(drawn, delta)
    assert (gamma >= -1e-6).all()
    assert (gamma <= 1 + 1e-6).all()


@settled
@given(rounds(-2, 2), st.lists(magnitudes(-2, 2).filter(bool), min_size=WIDTH, max_size=WIDTH))
def test_gamma_is_the_reference_s(drawn, delta):
    gamma, expected, memory = factors(drawn, delta), [], first_memory(WIDTH)
    for grads in drawn:
        float_grads = np.asarray(grads, np.float32)
        steps, memory = local_round(
            np.zeros(WIDTH),
            memory._replace(delta=np.asarray(delta, np.float32).astype(np.float64)),
            lambda _, t, grads=float_grads: grads[t],
            len(grads),
        )
        expected += [step.gamma for step in steps]
    np.testing.assert_allclose(gamma, expected, atol=2e-4)


@settled
@given(rounds(-2, 2), st.lists(magnitudes(-2, 2).filter(bool), min_size=WIDTH, max_size=WIDTH))
def test_step_and_correction_recovered_with_the_preconditioner(drawn, delta):
    """With a step size, gamma = -(update + P g) T / direction is still in [0, 1]."""
    float_delta = np.asarray(delta, np.float32).astype(np.float64)
    for t, g, updates, state in walk(update, drawn, delta):
        push = np.asarray(p_of(state), np.float64) * np.asarray(g, np.float32)
        gamma = -(updates + push) * t / float_delta
        slack = 1e-6 + 1e-6 * t * (np.abs(push) + np.abs(updates)) / np.abs(float_delta)
        assert (gamma >= -slack).all()
        assert (gamma <= 1 + slack).all()


@settled
@given(rounds(-30, 15), st.lists(magnitudes(-5, 5).filter(bool), min_size=WIDTH, max_size=WIDTH))
def test_gamma_of_the_opposite_direction_is_the_complement(drawn, delta):
    opposite = factors(drawn, [-d for d in delta])
    np.testing.assert_allclose(factors(drawn, delta) + opposite, 1, atol=1e-6)


@settled
@given(st.integers(1, 12), vectors(-10, 10))
def test_zero_gradients(num_steps, delta):
    expected = -0.5 * np.asarray(delta, np.float32) / num_steps
    for _, _, updates, state in walk(update, [[[0.0] * WIDTH] * num_steps], delta):
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        for moment in (state.m, state.v, p_of(state)):
            np.testing.assert_array_equal(moment, 0)


@settled
@given(rounds(-3, 3), vectors(-3, 3), st.permutations(range(WIDTH)))
def test_coordinates_do_not_see_each_other(drawn, delta, order):
    plain = list(walk(update, drawn, delta))
    permuted = [[[g[i] for i in order] for g in grads] for grads in drawn]
    moved = list(walk(update, permuted, [delta[i] for i in order]))
    for (_, _, a, s), (_, _, b, r) in zip(plain, moved, strict=True):
        np.testing.assert_allclose(a[list(order)], b, rtol=2e-6, atol=1e-30)
        np.testing.assert_allclose(np.asarray(p_of(s))[list(order)], p_of(r), rtol=2e-6, atol=1e-30)
