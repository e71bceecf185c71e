"""The transform inside optax: chains, masks, partitions, schedules, injected hyperparameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import (
    SIZE,
    align_states,
    assert_trees_close,
    assert_trees_equal,
    flat,
    noise,
    p_of,
    tree,
)

from pflalign_jax.align import AlignState, align_transform, new_round, preconditioner

HEAD = {"dense": {"bias": True, "kernel": False}, "scale": True}


def run(tx, grads, delta, num_steps=4, state=None, jit=False):
    """Return the updates of each gradient tree, and the last state."""
    extra = {} if delta is None else {"direction": delta, "num_steps": num_steps}
    update = lambda g, s, p: tx.update(g, s, p, **extra)  # noqa: E731
    update = jax.jit(update) if jit else update
    params = tree(noise(99))
    state = tx.init(params) if state is None else state
    seen = []
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(updates)
    return seen, state


def trees(seed, count=3, scale=1.0):
    return [tree(row) for row in noise(seed, count, scale=scale)]


def test_clipping_before_it():
    tx = align_transform(0.5)
    grads, delta = trees(0, scale=3.0), tree(noise(1))
    seen, state = run(optax.chain(optax.clip_by_global_norm(1.0), tx), grads, delta)
    norms = [np.linalg.norm(flat(g)) for g in grads]
    assert min(norms) > 1
    clipped = [jax.tree.map(lambda x, n=n: x / n, g) for g, n in zip(grads, norms, strict=True)]
    expected, expected_state = run(tx, clipped, delta)
    assert_trees_close(seen, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(align_states(state)[0], expected_state, rtol=1e-5, atol=1e-6)


def test_scaling_after_it():
    grads, delta = trees(0), tree(noise(1))
    seen, _ = run(optax.chain(align_transform(), optax.scale(0.5)), grads, delta)
    expected, _ = run(align_transform(), grads, delta)
    assert_trees_equal(seen, jax.tree.map(lambda u: 0.5 * u, expected))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("mask", [HEAD, lambda params: HEAD], ids=["tree", "function"])
def test_masked_with_the_full_direction(mask, jit):
    tx = align_transform(0.5)
    grads, delta = trees(0), tree(noise(1))
    seen, state = run(optax.masked(tx, mask), grads, delta, jit=jit)
    expected, full = run(tx, grads, delta, jit=jit)
    for updates, all_aligned, g in zip(seen, expected, grads, strict=True):
        assert_trees_close(updates["dense"]["bias"], all_aligned["dense"]["bias"])
        assert_trees_close(updates["scale"], all_aligned["scale"])
        assert_trees_equal(updates["dense"]["kernel"], g["dense"]["kernel"])
    (found,) = align_states(state)
    assert len(jax.tree.leaves(found.v)) == 2  # nothing is kept for a masked leaf
    assert_trees_close(found.v["dense"]["bias"], full.v["dense"]["bias"])
    assert_trees_close(p_of(state)["scale"], p_of(full)["scale"])


def test_masked_whole_subtree():
    grads, delta = trees(0), tree(noise(1))
    seen, _ = run(optax.masked(align_transform(), {"dense": False, "scale": True}), grads, delta)
    expected, _ = run(align_transform(), grads, delta)
    for updates, all_aligned, g in zip(seen, expected, grads, strict=True):
        assert_trees_close(updates["scale"], all_aligned["scale"])
        assert_trees_equal(updates["dense"], g["dense"])


@pytest.mark.parametrize("jit", [False, True])
def test_multi_transform(jit):
    body, head, rest = align_transform(0.5), align_transform(2.0, correction="sign"), optax.sgd(0.1)
    labels = {"dense": {"bias": "head", "kernel": "body"}, "scale": "rest"}
    tx = optax.multi_transform({"body": body, "head": head, "rest": rest}, labels)
    grads, delta = trees(0), tree(noise(1))
    seen, state = run(tx, grads, delta, jit=jit)
    by_body, _ = run(body, grads, delta, jit=jit)
    by_head, _ = run(head, grads, delta, jit=jit)
    for k, updates in enumerate(seen):
        assert_trees_close(updates["dense"]["kernel"], by_body[k]["dense"]["kernel"])
        assert_trees_close(updates["dense"]["bias"], by_head[k]["dense"]["bias"])
        assert_trees_close(updates["scale"], -0.1 * grads[k]["scale"])
    assert len(align_states(state)) == 2
    assert all(found.count == 3 for found in align_states(state))


def layouts():
    """Return ways to wrap the transform, each with the number of AlignStates inside."""
    tx = align_transform(0.5)
    labels = {"dense": {"bias": "a", "kernel": "b"}, "scale": "b"}
    nested = optax.chain(optax.masked(optax.chain(optax.clip(1.0), tx), HEAD), optax.scale(1.0))
    return {
        "bare": (tx, 1),
        "chain": (optax.chain(optax.clip_by_global_norm(1.0), tx), 1),
        "masked": (optax.masked(tx, HEAD), 1),
        "multi": (optax.multi_transform({"a": tx, "b": align_transform(1.0)}, labels), 2),
        "inject": (optax.inject_hyperparams(align_transform)(learning_rate=0.5), 1),
        "nested": (nested, 1),
    }


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("layout", layouts())
def test_new_round_finds_the_state(layout, jit):
    tx, how_many = layouts()[layout]
    _, state = run(tx, trees(0), tree(noise(1)))
    after = (jax.jit(new_round) if jit else new_round)(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    old, new = align_states(state), align_states(after)
    assert len(new) == how_many
    for before, now in zip(old, new, strict=True):
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(before.m))
        assert_trees_equal(now.m, jax.tree.map(jnp.zeros_like, before.m))
        assert_trees_equal(now._replace(m=before.m), before)
    # everything that is not the transform's is untouched
    hide = lambda s: jax.tree.map(  # noqa: E731
        lambda x: 0 if isinstance(x, AlignState) else x,
        s,
        is_leaf=lambda x: isinstance(x, AlignState),
    )
    assert_trees_equal(
        jax.tree.map(jnp.asarray, hide(after)), jax.tree.map(jnp.asarray, hide(state))
    )


@pytest.mark.parametrize("layout", layouts())
def test_new_round_makes_a_dropped_m_again(layout):
    tx, _ = layouts()[layout]
    _, state = run(tx, trees(0), tree(noise(1)))
    dropped = jax.tree.map(
        lambda x: x._replace(m=None) if isinstance(x, AlignState) else x,
        state,
        is_leaf=lambda x: isinstance(x, AlignState),
    )
    assert all(found.m is None for found in align_states(dropped))
    after, expected = new_round(dropped), new_round(state)
    assert jax.tree.structure(after) == jax.tree.structure(expected)
    for now, then in zip(align_states(after), align_states(expected), strict=True):
        assert_trees_equal(now, then)
    run(tx, trees(2), tree(noise(1)), state=after)  # and the next round works


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("layout", [name for name, (_, count) in layouts().items() if count == 1])
def test_preconditioner_finds_the_state(layout, jit):
    tx, _ = layouts()[layout]
    _, state = run(tx, trees(0), tree(noise(1)))
    found = (jax.jit(preconditioner) if jit else preconditioner)(state)
    (align_state,) = align_states(state)
    assert_trees_close(found, preconditioner(align_state))
    assert jax.tree.structure(found) == jax.tree.structure(align_state.v)


def test_preconditioner_finds_the_state_in_multi_transform():
    labels = {"dense": {"bias": "head", "kernel": "body"}, "scale": "body"}
    tx = optax.multi_transform({"body": align_transform(), "head": optax.adam(0.1)}, labels)
    _, state = run(tx, trees(0), tree(noise(1)))
    _, full = run(align_transform(), trees(0), tree(noise(1)))
    found, expected = preconditioner(state), preconditioner(full)
    assert_trees_close(found["dense"]["kernel"], expected["dense"]["kernel"])
    assert_trees_close(found["scale"], expected["scale"])
    assert found["dense"]["bias"] == optax.MaskedNode()  # Adam has no P


def test_preconditioner_refuses_no_state_and_several():
    with pytest.raises(ValueError, match="preconditioner: no AlignState found in a state of type"):
        preconditioner(optax.adam(0.1).init(tree(noise(0))))
    tx, _ = layouts()["multi"]
    with pytest.raises(ValueError, match=r"preconditioner: 2 AlignStates found .* pass one of"):
        preconditioner(tx.init(tree(noise(0))))


def test_schedule_uses_the_count_before_the_step_and_survives_new_round():
    rates = jnp.array([0.5, 0.25, 2.0, 0.0, 1.0])
    tx = align_transform(lambda count: rates[count])
    plain = align_transform(1.0)
    grads, state, plain_state = trees(0, 5), None, None
    for k, g in enumerate(grads):
        if k == 3:  # a round of 3 steps, then one of 2
            state, plain_state = new_round(state), new_round(plain_state)
        (updates,), state = run(tx, [g], None, state=state, jit=True)
        (expected,), plain_state = run(plain, [g], None, state=plain_state, jit=True)
        assert_trees_close(updates, jax.tree.map(lambda u, k=k: rates[k] * u, expected))
        assert state.count == k + 1
    assert np.abs(flat(updates)).max() > 1e-3


def test_optax_schedule():
    tx = align_transform(optax.linear_schedule(1.0, 0.0, 4))
    seen, _ = run(tx, trees(0, 5), None)
    plain, _ = run(align_transform(1.0), trees(0, 5), None)
    for k, (updates, expected) in enumerate(zip(seen, plain, strict=True)):
        np.testing.assert_allclose(flat(updates), (1 - k / 4) * flat(expected), rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("correction", ["probability", "none", 0.5])
def test_inject_hyperparams(correction, jit):
    options = {"learning_rate": 0.5, "correction": correction}
    grads, delta = trees(0), tree(noise(1))
    tx = optax.inject_hyperparams(align_transform)(**options)
    seen, state = run(tx, grads, delta, jit=jit)
    assert state.hyperparams["learning_rate"] == 0.5
    expected, _ = run(align_transform(**options), grads, delta)
    assert_trees_close(seen, expected)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    (changed,), _ = run(tx, [grads[0]], delta, state=tx.init(grads[0]), jit=jit)
    assert_trees_close(changed, expected[0])
    start = tx.init(grads[0])
    start.hyperparams["learning_rate"] = jnp.asarray(0.25)
    (changed,), _ = run(tx, [grads[0]], delta, state=start, jit=jit)
    quarter, _ = run(align_transform(**{**options, "learning_rate": 0.25}), grads[:1], delta)
    assert_trees_close(changed, quarter[0])


def test_inject_hyperparams_with_a_schedule():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    tx = optax.inject_hyperparams(align_transform)(learning_rate=schedule)
    seen, _ = run(tx, trees(0, 4), tree(noise(1)))
    expected, _ = run(align_transform(schedule), trees(0, 4), tree(noise(1)))
    assert_trees_close(seen, expected)


def test_unknown_extra_arguments_are_ignored():
    tx = align_transform()
    grads = tree(noise(0))
    expected, _ = tx.update(grads, tx.init(grads))
    updates, _ = tx.update(grads, tx.init(grads), grads, value=1.0, grad=grads)
    assert_trees_equal(updates, expected)


def test_steps_without_a_direction_are_ignored():
    tx = align_transform()
    grads = tree(noise(0))
    expected, _ = tx.update(grads, tx.init(grads))
    updates, _ = tx.update(grads, tx.init(grads), num_steps=3)
    assert_trees_equal(updates, expected)


def test_a_tree_in_pieces():
    """A transform of each leaf alone gives what the transform of the tree gives."""
    tx = align_transform(0.5)
    grads, delta = trees(0), tree(noise(1))
    seen, _ = run(tx, grads, delta)
    for take in (
        lambda t: t["scale"],
        lambda t: t["dense"]["bias"],
        lambda t: t["dense"]["kernel"],
        lambda t: t["dense"]["kernel"][1:2, ::2],
    ):
        state = tx.init(take(grads[0]))
        for g, expected in zip(grads, seen, strict=True):
            updates, state = tx.update(take(g), state, direction=take(delta), num_steps=4)
            assert_trees_close(updates, take(expected))


def test_sizes_of_these_trees():
    assert flat(tree(noise(0))).shape == (SIZE,)
    np.testing.assert_allclose(flat(tree(noise(0))), noise(0), rtol=1e-6)
