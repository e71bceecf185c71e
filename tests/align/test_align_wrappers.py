"""Which wrappers of optax and flax pass a direction on, and what of a direction is aligned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from probes import assert_trees_close, assert_trees_equal, noise, tree

from pflalign_jax.align import align_transform, aligned_part, direction, new_round, realign

ONES = {"body": jnp.ones(3), "head": jnp.ones(2)}
LABELS = {"body": "aligned", "head": "aligned"}

# docs/howto/composing.md lists these; optax can change them.
PASS = {
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "named_chain": lambda tx: optax.named_chain(("aligned", tx)),
    "masked": lambda tx: optax.masked(tx, {"body": True, "head": True}),
    "multi_transform": lambda tx: optax.multi_transform({"aligned": tx}, LABELS),
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask={"body": False, "head": False}
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: True),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: True),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.1),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
}
DROP_IN_A_CHAIN = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "gradient_transformation": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "GradientTransformation": lambda tx: optax.GradientTransformation(tx.init, tx.update),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
    "lookahead": lambda tx: optax.lookahead(tx, 1, 0.5),
}


def removed_in_a_step(tx):
    """Return the update of a step of length 0: what it removes of a direction of ones, T = 4."""
    params = ONES
    return tx.update(ONES, tx.init(params), params, direction=ONES, num_steps=4)[0]


@pytest.mark.parametrize("name", PASS)
def test_these_pass_the_direction_on(name):
    tx = align_transform(0.0, correction=1.0, require_direction=True)
    expected = jax.tree.map(lambda x: -x / 4, ONES)
    assert_trees_close(removed_in_a_step(PASS[name](tx)), expected, rtol=1e-5)


def test_injected_hyperparameters_pass_the_direction_on():
    make = optax.inject_hyperparams(align_transform)
    tx = make(learning_rate=0.0, correction=1.0, require_direction=True)
    assert_trees_close(removed_in_a_step(tx), jax.tree.map(lambda x: -x / 4, ONES))


@pytest.mark.parametrize("name", DROP_IN_A_CHAIN)
def test_these_drop_it_inside_a_chain_and_are_refused(name):
    required = align_transform(0.0, correction=1.0, require_direction=True)
    wrapped = optax.chain(optax.clip(1.0), DROP_IN_A_CHAIN[name](required))
    params = optax.LookaheadParams.init_synced(ONES) if name == "lookahead" else ONES
    with pytest.raises(ValueError, match=r"no direction has arrived.*drops extra arguments"):
        wrapped.update(ONES, wrapped.init(params), params, direction=ONES, num_steps=4)


REFUSE = {
    "sam": lambda tx: optax.contrib.sam(tx, optax.contrib.normalize()),
    "flatten": optax.flatten,
    "lookahead": lambda tx: optax.lookahead(tx, 1, 0.5),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
}


@pytest.mark.parametrize("name", REFUSE)
def test_these_end_with_an_error_that_names_the_direction(name):
    wrapped = REFUSE[name](align_transform())
    params = optax.LookaheadParams.init_synced(ONES) if name == "lookahead" else ONES
    with pytest.raises((TypeError, ValueError), match="direction"):
        wrapped.update(ONES, wrapped.init(params), params, direction=ONES, num_steps=4)


def test_masked_returns_the_gradients_of_what_is_masked():
    tx = optax.masked(align_transform(), {"body": True, "head": False})
    np.testing.assert_array_equal(removed_in_a_step(tx)["head"], ONES["head"])


def test_multi_steps_around_the_chain_or_with_its_two_functions():
    tx = align_transform(0.0, correction=1.0, require_direction=True)
    steps = optax.MultiSteps(tx, 1)
    both = optax.GradientTransformationExtraArgs(steps.init, steps.update)
    around = optax.MultiSteps(optax.chain(optax.clip(1.0), tx), 1)
    for wrapped in (optax.chain(optax.clip(1.0), both), around):
        assert_trees_close(removed_in_a_step(wrapped), jax.tree.map(lambda x: -x / 4, ONES))


def test_steps_are_counted_after_accumulation():
    """8 calls of k = 2 are T = 4 steps, which remove the whole direction at γ = 1."""
    tx = optax.MultiSteps(align_transform(0.0, correction=1.0), 2)
    state, total = tx.init(jnp.ones(2)), jnp.zeros(2)
    for _ in range(8):
        updates, state = tx.update(jnp.ones(2), state, direction=jnp.ones(2), num_steps=8 // 2)
        total += updates
    np.testing.assert_allclose(total, -1, rtol=1e-6)


def test_accumulated_gradients_are_one_gradient():
    tx = align_transform(0.5)
    several = optax.MultiSteps(tx, 2)
    state, expected_state = several.init(tree(noise(0))), tx.init(tree(noise(0)))
    delta = tree(noise(9))
    for pair in noise(1, 3, 2):
        for g in pair:
            updates, state = several.update(tree(g), state, direction=delta, num_steps=3)
        expected, expected_state = tx.update(
            tree(pair.mean(0)), expected_state, direction=delta, num_steps=3
        )
        assert_trees_close(updates, expected, rtol=1e-5, atol=1e-6)
    assert_trees_equal(new_round(state).inner_opt_state.m, jax.tree.map(jnp.zeros_like, delta))


# What is aligned.

BODY = {"body": True, "head": False}
SPLIT = {"body": "aligned", "head": "sgd"}


def partly_aligned():
    tx = align_transform(0.5)
    split = optax.multi_transform({"aligned": tx, "sgd": optax.sgd(0.1)}, SPLIT)
    return {
        "masked": optax.masked(tx, BODY),
        "multi_transform": split,
        "chain": optax.chain(optax.clip(1.0), split),
        "inject": optax.chain(optax.masked(optax.inject_hyperparams(align_transform)(0.5), BODY)),
        "selective": optax.selective_transform(tx, freeze_mask={"body": False, "head": True}),
        "MultiSteps": optax.MultiSteps(split, 2),
    }


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", partly_aligned())
def test_the_aligned_part(name, jit):
    state = partly_aligned()[name].init(ONES)
    part = (jax.jit(aligned_part) if jit else aligned_part)(ONES, state)
    assert_trees_equal(part, {"body": jnp.ones(3), "head": jnp.zeros(2)})


def test_the_aligned_part_of_stacked_clients_and_of_low_precision():
    tx = partly_aligned()["multi_transform"]
    stacked = jax.tree.map(lambda x: jnp.ones((4, *x.shape), jnp.bfloat16), ONES)
    expected = {**stacked, "head": jnp.zeros((4, 2), jnp.bfloat16)}
    assert_trees_equal(aligned_part(stacked, tx.init(ONES)), expected)
    assert_trees_equal(aligned_part(stacked, jax.vmap(tx.init)(stacked)), expected)


def test_everything_is_aligned_by_two_transforms_or_one():
    both = {"a": align_transform(0.5), "b": align_transform(2.0)}
    tx = optax.multi_transform(both, {"body": "a", "head": "b"})
    assert_trees_equal(aligned_part(ONES, tx.init(ONES)), ONES)
    assert_trees_equal(aligned_part(ONES, align_transform().init(ONES)), ONES)


def test_the_aligned_part_of_what_does_not_match_is_refused():
    state = align_transform().init(ONES)
    with pytest.raises(ValueError, match=r"aligned_part: align_transform steps \['head'\]"):
        aligned_part({"body": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="aligned_part: no AlignState found"):
        aligned_part(ONES, optax.adam(0.1).init(ONES))


@pytest.mark.parametrize("only_aligned", [False, True])
def test_a_head_that_is_realigned_but_not_aligned_keeps_its_direction(only_aligned):
    """Without gradients, each round removes half of what is aligned, and nothing of the head."""
    tx = partly_aligned()["multi_transform"]
    w, delta, state = jax.tree.map(jnp.zeros_like, ONES), ONES, tx.init(ONES)
    for _ in range(3):
        delta = aligned_part(delta, state) if only_aligned else delta
        local = realign(w, delta)
        for _ in range(5):
            updates, state = tx.update(w, state, direction=delta, num_steps=5)
            local = optax.apply_updates(local, updates)
        state, delta = new_round(state), direction(local, w)
    np.testing.assert_allclose(delta["body"], 0.5**3, rtol=1e-5)
    np.testing.assert_array_equal(delta["head"], 0 if only_aligned else 1)


def test_nnx_optimizer():
    """It passes the direction on, and its state is found."""
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    received = jax.tree.map(jnp.copy, params)
    ones = jax.tree.map(jnp.ones_like, params)
    reference = align_transform(0.5)
    kernel = jnp.ones((2, 3))
    expected, _ = reference.update(kernel, reference.init(kernel), direction=kernel, num_steps=4)
    optimizer = nnx.Optimizer(model, align_transform(0.5), wrt=nnx.Param)
    nnx.update(model, realign(received, ones))
    optimizer.update(model, ones, direction=ones, num_steps=4)
    moved = direction(nnx.state(model, nnx.Param), received)
    np.testing.assert_allclose(moved["kernel"][...], 1 + expected, rtol=1e-5)
    optimizer.opt_state = nnx.data(new_round(optimizer.opt_state))
    np.testing.assert_array_equal(optimizer.opt_state.m["kernel"][...], 0)
    assert optimizer.opt_state.v["kernel"][0, 0] > 0
    assert_trees_equal(aligned_part(ones, optimizer.opt_state), ones)
    optimizer.update(model, ones, direction=ones, num_steps=4)
