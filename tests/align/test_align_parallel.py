"""Elementwise means the same under jit, scan, vmap over clients, and shards of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from probes import CORRECTIONS, assert_trees_close, noise, p_of, tree

from pflalign_jax.align import align_transform, direction, new_round, realign

K, T = 8, 5
COUNTS = np.array([5, 1, 3, 2, 5, 4, 1, 2], np.int32)  # each client's T
GRADS = noise(0, K, T)
DELTAS = noise(1, K)


def client(tx):
    """Return a function of one client's round; steps past its own T are not taken."""

    def one(state, grads, delta, num_steps):
        def step(carry, inputs):
            t, g = inputs
            total, state = carry
            updates, after = tx.update(g, state, direction=delta, num_steps=num_steps)
            added = jax.tree.map(jnp.add, total, updates)
            keep = lambda new, old: jnp.where(t < num_steps, new, old)  # noqa: E731
            return jax.tree.map(keep, (added, after), (total, state)), None

        start = (jax.tree.map(jnp.zeros_like, delta), new_round(state))
        return jax.lax.scan(step, start, (jnp.arange(T), grads))[0]

    return one


def loop(tx, delta_rows=DELTAS):
    """Run the clients one at a time, without jit, scan or padding; stack what they return."""
    results = []
    for k in range(K):
        delta = tree(delta_rows[k])
        total, state = jax.tree.map(jnp.zeros_like, delta), tx.init(delta)
        for t in range(COUNTS[k]):
            updates, state = tx.update(
                tree(GRADS[k, t]), state, direction=delta, num_steps=int(COUNTS[k])
            )
            total = jax.tree.map(jnp.add, total, updates)
        results.append((total, state))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def stacked(tx):
    delta = tree(DELTAS)
    return jax.vmap(tx.init)(delta), tree(GRADS), delta, jnp.asarray(COUNTS)


@pytest.mark.parametrize("correction", CORRECTIONS[:4])
def test_vmap_over_clients_is_the_loop(correction):
    tx = align_transform(0.5, correction=correction)
    total, state = jax.vmap(client(tx))(*stacked(tx))
    expected, expected_state = loop(tx)
    assert_trees_close(total, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(state, expected_state, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(state.count, COUNTS)


def test_one_vmapped_update_with_different_num_steps():
    tx = align_transform(0.0, correction=1.0)
    delta = tree(DELTAS)
    state = jax.vmap(tx.init)(delta)
    update = jax.vmap(lambda g, s, d, t: tx.update(g, s, direction=d, num_steps=t))
    updates, _ = update(tree(GRADS[:, 0]), state, delta, jnp.asarray(COUNTS))
    assert_trees_close(updates, tree(-DELTAS / COUNTS[:, None]))


@pytest.mark.parametrize("spmd", ["shard_map", "jit"])
def test_clients_sharded_over_devices(spmd):
    tx = align_transform(0.5)
    mesh = Mesh(np.array(jax.devices()[:8]), ("clients",))
    every = jax.vmap(client(tx))
    if spmd == "shard_map":
        sharded = jax.shard_map(every, mesh=mesh, in_specs=P("clients"), out_specs=P("clients"))
    else:
        sharded = every
    inputs = jax.device_put(stacked(tx), NamedSharding(mesh, P("clients")))
    total, state = jax.jit(sharded)(*inputs)
    assert len(total["dense"]["kernel"].sharding.device_set) == 8
    assert not total["dense"]["kernel"].is_fully_replicated
    expected, expected_state = loop(tx)
    assert_trees_close(total, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(state, expected_state, rtol=1e-5, atol=1e-7)


def test_one_client_s_coordinates_sharded_over_devices():
    tx = align_transform(0.5)
    mesh = Mesh(np.array(jax.devices()[:8]), ("model",))
    rng = np.random.default_rng(0)
    grads, delta = jnp.asarray(rng.standard_normal((2, 16, 3)), jnp.float32)

    def one(g, d):
        return tx.update(g, tx.init(d), direction=d, num_steps=2)

    spec = (P("model"), P("model"))
    state_spec = jax.tree.map(lambda x: P("model") if x.ndim else P(), tx.init(delta))
    sharded = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=(P("model"), state_spec))
    assert_trees_close(jax.jit(sharded)(grads, delta), one(grads, delta))


def test_a_scan_over_steps_keeps_the_state_s_types():
    """A carry whose dtype or weak type changed would be refused by scan."""
    tx = align_transform(0.5)
    delta = tree(DELTAS[0])
    for correction in CORRECTIONS:
        tx = align_transform(0.5, correction=correction)
        jax.eval_shape(
            lambda g, tx=tx: jax.lax.scan(
                lambda s, x: tx.update(x, s, direction=delta, num_steps=T)[::-1],
                tx.init(delta),
                g,
            ),
            tree(GRADS[0]),
        )


def test_realign_and_direction_inside_shard_map():
    """A global model that is replicated meets directions that are sharded."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("clients",))
    spec = P("clients")
    params = tree(noise(5))
    there = jax.shard_map(realign, mesh=mesh, in_specs=(P(), spec), out_specs=spec)
    back = jax.shard_map(direction, mesh=mesh, in_specs=(spec, P()), out_specs=spec)
    local = jax.jit(there)(params, tree(DELTAS))
    assert_trees_close(local, tree(noise(5) + DELTAS), atol=1e-6)
    assert_trees_close(jax.jit(back)(local, params), tree(DELTAS), atol=1e-6)


def test_num_steps_is_traced_and_of_any_integer_kind():
    tx = align_transform(0.5)
    grads, delta = tree(GRADS[0, 0]), tree(DELTAS[0])
    traces = []

    @jax.jit
    def update(t):
        traces.append(t)
        return tx.update(grads, tx.init(delta), direction=delta, num_steps=t)[0]

    three = update(jnp.int32(3))
    five = update(jnp.int32(5))
    assert len(traces) == 1
    for t, expected in ((3, three), (5, five)):
        for kind in (int, np.int64, jnp.int32, jnp.uint8, float):
            updates, _ = tx.update(grads, tx.init(delta), direction=delta, num_steps=kind(t))
            assert_trees_close(updates, expected)


def test_new_round_of_stacked_clients():
    tx = align_transform(0.5)
    _, state = jax.vmap(client(tx))(*stacked(tx))
    after = new_round(state)
    np.testing.assert_array_equal(after.count, COUNTS)
    assert_trees_close(after, jax.vmap(new_round)(state), rtol=0, atol=0)
    assert_trees_close(after.m, tree(0 * DELTAS), rtol=0, atol=0)
    assert_trees_close(p_of(after), jax.vmap(p_of)(state), rtol=1e-6)
