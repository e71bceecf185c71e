"""new_round, realign and direction: what happens between the rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import assert_trees_close, assert_trees_equal, noise, p_of, tree

from pflalign_jax.align import AlignState, align_transform, direction, new_round, realign

K = 3


@pytest.fixture(scope="module")
def state():
    tx = align_transform()
    state = tx.init(tree(noise(0)))
    for row in noise(0, 4):
        _, state = tx.update(tree(row), state)
    return state


def test_the_state_is_a_named_tuple_with_documented_fields(state):
    assert isinstance(state, AlignState)
    assert isinstance(state, tuple)
    assert state._fields[:3] == ("count", "m", "v")


def test_new_round_resets_m_alone(state):
    after = new_round(state)
    assert_trees_equal(after.m, tree(0 * noise(0)))
    assert_trees_equal(after._replace(m=state.m), state)
    assert_trees_equal(p_of(after), p_of(state))
    assert after.count == 4


def test_new_round_leaves_its_argument_alone(state):
    before = jax.tree.map(np.array, state)
    new_round(state)
    assert_trees_equal(jax.tree.map(np.array, state), before)


def test_new_round_twice_is_once(state):
    assert_trees_equal(new_round(new_round(state)), new_round(state))


@pytest.mark.parametrize("jit", [False, True])
def test_new_round_makes_a_dropped_m_again(state, jit):
    after = (jax.jit(new_round) if jit else new_round)(state._replace(m=None))
    assert_trees_equal(after, new_round(state))


def test_new_round_of_many_states(state):
    after = new_round({"a": [state, optax.EmptyState()], "b": (state,)})
    assert_trees_equal(after["a"][0], new_round(state))
    assert_trees_equal(after["b"][0], new_round(state))


@pytest.mark.parametrize("other", [(), {}, optax.EmptyState(), {"m": jnp.ones(2)}])
def test_new_round_refuses_a_state_without_the_transform_s(other):
    with pytest.raises(ValueError, match="AlignState"):
        new_round(other)


def test_new_round_refuses_another_optimiser_s_state():
    with pytest.raises(ValueError, match="AlignState"):
        new_round(optax.adam(0.1).init(tree(noise(0))))


def test_the_next_round_starts_from_v_and_p_but_not_m(state):
    """Meet a fresh client in the same round: m is the same, v and P remember the round before."""
    tx, old, new = align_transform(), new_round(state), align_transform().init(tree(noise(0)))
    for row in noise(7, 3):
        _, old = tx.update(tree(row), old)
        _, new = tx.update(tree(row), new)
    assert_trees_equal(old.m, new.m)
    assert np.all(old.v["dense"]["kernel"] > new.v["dense"]["kernel"])
    assert np.all(p_of(old)["dense"]["kernel"] != p_of(new)["dense"]["kernel"])
    assert old.count == 7


def test_realign_adds():
    assert_trees_close(realign(tree(noise(0)), tree(noise(1))), tree(noise(0) + noise(1)))


def test_direction_is_local_minus_global():
    """The order of the arguments is local, then global."""
    local, params = tree(noise(0)), tree(noise(1))
    assert_trees_close(direction(local, params), tree(noise(0) - noise(1)))


def test_direction_undoes_realign():
    params, delta = tree(noise(0)), tree(noise(1))
    assert_trees_close(direction(realign(params, delta), params), delta, atol=1e-6)


def test_a_zero_direction_realigns_nothing():
    params = tree(noise(0))
    assert_trees_equal(realign(params, tree(0 * noise(0))), params)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("clients", [1, K])
def test_stacked_clients(clients, jit):
    wrap = jax.jit if jit else lambda f: f
    params, delta = tree(noise(0)), tree(noise(1, clients))
    local = wrap(realign)(params, delta)
    assert_trees_close(local, tree(noise(0) + noise(1, clients)), atol=1e-6)
    back = wrap(direction)(local, params)
    assert_trees_close(back, delta, atol=1e-6)
    rows = [direction(jax.tree.map(lambda x, k=k: x[k], local), params) for k in range(clients)]
    assert_trees_equal(back, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


def test_stacked_clients_as_many_as_a_leaf_is_long():
    """K equal to a leaf's own length must not be mistaken for its axis."""
    params, delta = tree(noise(0)), tree(noise(1, 4))  # the bias has shape (4,)
    assert_trees_close(realign(params, delta), tree(noise(0) + noise(1, 4)), atol=1e-6)


def test_stacked_on_both_sides():
    params, delta = tree(noise(0, K)), tree(noise(1, K))
    assert_trees_close(realign(params, delta), tree(noise(0, K) + noise(1, K)), atol=1e-6)
    assert_trees_close(direction(params, delta), tree(noise(0, K) - noise(1, K)), atol=1e-6)


def test_both_under_vmap():
    params, delta = tree(noise(0)), tree(noise(1, K))
    local = jax.vmap(realign, in_axes=(None, 0))(params, delta)
    assert_trees_equal(local, realign(params, delta))
    assert_trees_equal(
        jax.vmap(direction, in_axes=(0, None))(local, params), direction(local, params)
    )
