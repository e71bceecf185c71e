"""What a client knows of its own data: only its own examples count, however they are batched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax import models
from pflalign_jax.federated import ClientData, class_counts, class_features, client_loss

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.array([2, 2, 0, 1, 1, 1, 0, 2, 2, 2], np.int32)


def client(start, size):
    """Return the client with the examples from ``start``, in arrays that hold others' as well."""
    return ClientData(
        jnp.asarray(X), jnp.asarray(Y), jnp.int32(start), jnp.int32(size),
        jnp.arange(8, dtype=jnp.int32), jnp.float32(1), jnp.float32(2),
    )  # fmt: skip


def distance(centre, batch, key):
    """Return the mean distance of the first feature."""
    gaps = jnp.abs(batch.x[:, 0] - centre)
    return jnp.sum(gaps * batch.mask) / jnp.maximum(batch.mask.sum(), 1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_a_loss_is_the_mean_over_the_clients_examples(batch_size):
    expected = np.abs((X[2:7, 0] - 1) / 2 - 3).mean()
    found = jax.jit(lambda data: client_loss(distance, 3.0, data, batch_size=batch_size))
    np.testing.assert_allclose(found(client(2, 5)), expected, rtol=1e-6)


def test_a_client_without_examples_has_a_loss_of_zero():
    assert float(client_loss(distance, 3.0, client(2, 0))) == 0


def test_every_batch_has_its_own_draws():
    def drawn(params, batch, key):
        return jax.random.normal(key)

    def loss(size, key=None):
        return float(client_loss(drawn, None, client(2, size), key, batch_size=1))

    first, second, third = loss(1), 2 * loss(2) - loss(1), 3 * loss(3) - 2 * loss(2)
    assert len({round(value, 4) for value in (first, second, third)}) == 3
    assert loss(3) == loss(3) != loss(3, jax.random.key(1))


def test_losses_of_several_models_at_once():
    centres = jnp.array([0.0, 3.0])
    losses = jax.vmap(lambda centre: client_loss(distance, centre, client(2, 5)))(centres)
    alone = [client_loss(distance, centre, client(2, 5)) for centre in centres]
    np.testing.assert_allclose(losses, alone, rtol=1e-6)


def test_labels_are_counted():
    assert class_counts(client(2, 5), 3).tolist() == [2, 3, 0]
    assert class_counts(client(2, 0), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_features_are_summed_by_label(batch_size):
    linear = models.Model(
        init=lambda key, x: {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}},
        apply=lambda params, x: x @ params["head"]["kernel"],
        head=("head",),
        features=lambda params, x: x,
    )
    found = class_features(linear, linear.init(None, None), client(2, 5), 3, batch_size)
    z, labels = (X[2:7] - 1) / 2, Y[2:7]
    expected = [z[labels == c].sum(0) for c in range(3)]
    np.testing.assert_allclose(found.sums, expected, rtol=1e-6)
    assert found.counts.tolist() == [2, 3, 0]
    assert float(found.squares) == pytest.approx((z**2).sum())
