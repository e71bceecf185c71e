"""The local loop: every example once per epoch, partial batches, small clients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import LOSS, MODEL

from pflalign_jax.federated import ClientData, local_training
from pflalign_jax.federated.local import epoch_order, take


def window(x, y, start, size, longest=None):
    longest = size if longest is None else longest
    return ClientData(
        *(jnp.asarray(a) for a in (x, y)),
        *(jnp.asarray(a, jnp.int32) for a in (start, size)),
        jnp.arange(longest, dtype=jnp.int32),
        *(jnp.asarray(a, jnp.float32) for a in (0, 1)),
    )


def visits(size, batch_size, local_epochs=1, start=2, seed=0, drop_last=None):
    """Return, per example, the sum of 1 / (real size of its batch) over its visits."""
    total = start + size + 3
    numbers = np.arange(total, dtype=np.float32)

    def loss(counts, batch, key):
        mine = jax.nn.one_hot(batch.x.astype(int), total) * batch.mask[:, None]
        return jnp.sum(mine @ counts) / jnp.maximum(jnp.sum(batch.mask), 1)

    add = optax.scale(1.0)
    local = local_training(loss, add, local_epochs=local_epochs, batch_size=batch_size)
    data = window(numbers, numbers, start, size, longest=max(size, 1) + 4)
    data = data._replace(drop_last=drop_last)
    counts = jnp.zeros(total)
    result = local.train(counts, add.init(counts), data, jax.random.key(seed))
    used = size - size % batch_size if drop_last and size >= batch_size else size
    assert int(local.num_steps(data)) == local_epochs * -(-used // batch_size)
    assert float(result.metrics["loss"].weight) == local_epochs * used
    return np.asarray(result.params)


@pytest.mark.parametrize(
    ("size", "batch_size", "expected"),
    [
        (6, 3, [1 / 3] * 6),
        (7, 3, [1 / 3] * 6 + [1.0]),
        (8, 3, [1 / 3] * 6 + [1 / 2] * 2),
        (2, 5, [1 / 2] * 2),
        (1, 1, [1.0]),
    ],
)
def test_every_example_is_used_once_and_the_last_batch_is_smaller(size, batch_size, expected):
    seen = visits(size, batch_size)
    np.testing.assert_allclose(np.sort(seen[2 : 2 + size]), expected, rtol=1e-6)
    assert seen[:2].sum() == 0 and seen[2 + size :].sum() == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [(7, [0] + [1 / 3] * 6), (8, [0, 0] + [1 / 3] * 6), (6, [1 / 3] * 6), (2, [1 / 2] * 2)],
)
def test_a_last_batch_that_is_not_full_can_be_left_out(size, expected):
    """But for a client that has no other."""
    seen = visits(size, 3, drop_last=jnp.asarray(True))
    np.testing.assert_allclose(np.sort(seen[2 : 2 + size]), expected, rtol=1e-6)
    left_out = {
        int(np.argmin(visits(7, 3, drop_last=jnp.asarray(True), seed=seed)[2:9]))
        for seed in range(8)
    }
    assert len(left_out) > 2


def test_epochs_are_shuffled_afresh():
    lasts = {int(np.argmax(visits(7, 3, seed=seed))) for seed in range(8)}
    assert len(lasts) > 2
    two = visits(7, 3, local_epochs=2)[2:9]
    assert two.sum() == pytest.approx(6, rel=1e-5)
    assert (two > 1.1).sum() + (two < 0.7).sum() >= 6


def test_no_examples_no_steps():
    np.testing.assert_array_equal(visits(0, 3), 0)


def test_order_is_a_permutation_that_ignores_the_bound():
    x = np.zeros(50, np.float32)
    short = epoch_order(jax.random.key(3), window(x, x, 0, 9, longest=9))
    long = epoch_order(jax.random.key(3), window(x, x, 0, 9, longest=40))
    assert sorted(short.tolist()) == list(range(9))
    np.testing.assert_array_equal(long[:9], short)
    assert short.tolist() != epoch_order(jax.random.key(4), window(x, x, 0, 9, longest=9)).tolist()


def test_order_is_uniform():
    x = np.zeros(4, np.float32)
    keys = jax.random.split(jax.random.key(0), 6000)
    orders = jax.vmap(lambda key: epoch_order(key, window(x, x, 0, 4)))(keys)
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 49.7  # chi-square, 23 degrees of freedom, p 0.001


def test_normalisation_happens_on_the_device():
    x = np.array([[10], [20]], np.uint8)

    def loss(params, batch, key):
        return jnp.sum(params * batch.x[:, 0] * batch.mask) / jnp.sum(batch.mask)

    tx = optax.scale(1.0)
    data = window(x, np.zeros(2, np.int32), 0, 2)._replace(mean=jnp.float32(5), std=jnp.float32(10))
    local = local_training(loss, tx, batch_size=2)
    result = local.train(jnp.zeros(()), tx.init(jnp.zeros(())), data, jax.random.key(0))
    assert float(result.params) == pytest.approx((0.5 + 1.5) / 2)


@pytest.mark.parametrize("options", [{"local_epochs": 0}, {"batch_size": 0}])
def test_impossible_work_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=0"):
        local_training(LOSS, optax.sgd(0.1), **options)


def test_elementwise_changes_no_number():
    x = jax.random.normal(jax.random.key(0), (20, 4))
    y = jnp.arange(20) % 3
    data = window(x, y.astype(jnp.int32), 2, 13)
    params = MODEL.init(jax.random.key(1), x)
    results = []
    for elementwise in (False, True):
        tx = optax.adam(0.1)
        local = local_training(LOSS, tx, local_epochs=2, batch_size=5, elementwise=elementwise)
        result = local.train(params, tx.init(params), data, jax.random.key(2))
        results.append((result.params, result.opt_state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results[0], results[1]
    )
    assert results[1][0]["Dense_0"]["kernel"].shape == params["Dense_0"]["kernel"].shape


def test_tokens_are_not_normalised():
    tokens = np.array([[1, 300], [2, 400]], np.int32)
    data = window(tokens, np.zeros(2, np.int32), 0, 2)._replace(mean=jnp.float32(7))
    batch = take(data, jnp.array([1]), jnp.ones(1))
    np.testing.assert_array_equal(batch.x, [[2, 400]])
    assert batch.x.dtype == jnp.int32
