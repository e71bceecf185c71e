"""Training on the bound: its objective, its steps by hand, and with pFLAlign's transform."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pflalign_jax import align_transform, models
from pflalign_jax.certificates import (
    bound_training,
    bounded_cross_entropy,
    first_posterior,
    gaussian_kl,
    gaussian_prior,
    in_parameters,
    leaf_scales,
    pac_bayes,
)
from pflalign_jax.certificates.bound_training import standard_kl
from pflalign_jax.federated import ClientData
from pflalign_jax.models import Batch

MODEL = models.mlp(3, hidden=())


def client(size=60, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, size).astype(np.int32)
    x = (np.eye(3)[y] * 2 + rng.normal(size=(size, 3))).astype(np.float32)
    return ClientData(
        jnp.asarray(x),
        jnp.asarray(y),
        jnp.int32(0),
        jnp.int32(size),
        jnp.arange(size, dtype=jnp.int32),
        jnp.float32(0),
        jnp.float32(1),
    )


def prior(factor=0.5):
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 3)))
    return gaussian_prior(params, factor)


def test_the_loss_is_bounded_and_ordered():
    data, loss = client(), bounded_cross_entropy(MODEL, p_min=0.01)
    batch = Batch(data.x, data.y, jnp.ones(60))
    for factor in (0.0, 1.0, 100.0, -100.0):
        params = jax.tree.map(lambda a, factor=factor: factor * a, prior().mean)
        assert 0 <= loss(params, batch, jax.random.key(0)) <= 1
    # A third for each class: the probability counts as 0.01 + 0.99 / 3.
    zero = jax.tree.map(jnp.zeros_like, prior().mean)
    assert float(loss(zero, batch, jax.random.key(0))) == pytest.approx(np.log(0.34) / np.log(0.01))


def test_a_step_descends_along_the_gradient_of_the_bound():
    """With a loss that is linear in the weights the gradient is known by hand."""
    data, rate, delta, start = client(8), 0.1, 0.05, prior()
    slope = jax.tree.map(jnp.ones_like, start.mean)

    def loss(params, batch, key):
        return 0.2 + 1e-3 * sum(jnp.vdot(a, b) for a, b in zip(
            jax.tree.leaves(slope), jax.tree.leaves(params), strict=True))  # fmt: skip

    local = bound_training(loss, optax.sgd(rate), batch_size=8, delta=delta)
    posterior = first_posterior(start)
    result = local.train(posterior, optax.sgd(rate).init(posterior), data, jax.random.key(1),
                         prior=start)  # fmt: skip
    assert int(local.num_steps(data)) == int(result.steps) == 1
    # At the prior the KL has no gradient, and d/dR (√(R+c) + √c)² = 1 + √(c / (R + c)).
    c = np.log(2 * np.sqrt(8) / delta) / 16
    f = float(result.metrics["loss"].total / result.metrics["loss"].weight)
    risk = (np.sqrt(f) - np.sqrt(c)) ** 2 - c
    moved = -rate * 1e-3 * (1 + np.sqrt(c / (risk + c)))
    scales = jax.tree.leaves(leaf_scales(start.mean, 0.5))
    for u, s in zip(jax.tree.leaves(result.params.mean), scales, strict=True):
        np.testing.assert_allclose(u, moved * s, rtol=1e-2)
    # In the model's parameters: by s² times the gradient.
    trained = in_parameters(result.params, start)
    for new, old, s in zip(
        jax.tree.leaves(trained.mean), jax.tree.leaves(start.mean), scales, strict=True
    ):
        np.testing.assert_allclose(new - old, moved * s**2, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("tx", [pytest.param("adam", marks=pytest.mark.slow), "align"])
def test_training_lowers_the_bound_and_not_the_sample_error_at_any_price(tx):
    data, start = client(), prior()
    make = {"adam": optax.adam(0.05), "align": align_transform(5.0)}
    local = bound_training(bounded_cross_entropy(MODEL), make[tx], 40, 10, elementwise=True)
    posterior = first_posterior(start)
    extra = {"prior": start}
    if tx == "align":  # realignment removes a direction of means and scales within the round
        extra |= {
            "direction": jax.tree.map(lambda a: 0.01 * jnp.ones_like(a), posterior),
            "num_steps": local.num_steps(data),
        }
    trained = jax.jit(local.train)(
        posterior, make[tx].init(posterior), data, jax.random.key(0), **extra
    )
    found = in_parameters(trained.params, start)
    kl = gaussian_kl(found, start.mean, leaf_scales(start.mean, 0.5))
    assert kl == pytest.approx(float(standard_kl(trained.params)), rel=1e-4)
    wrong = [
        float(jnp.mean(jnp.argmax(MODEL.apply(p.mean, data.x), -1) != data.y))
        for p in (start, found)
    ]
    assert 0 < kl < 60
    bounds = [pac_bayes(error, each, 60).bound for error, each in zip(wrong, (0, kl), strict=True)]
    assert bounds[1] < bounds[0]


def test_wrong_arguments_are_refused_by_name():
    loss = bounded_cross_entropy(MODEL)
    with pytest.raises(ValueError, match=r"delta=1\.5 is not allowed"):
        bound_training(loss, optax.sgd(0.1), delta=1.5)
    with pytest.raises(ValueError, match="batch_size=0"):
        bound_training(loss, optax.sgd(0.1), batch_size=0)
    with pytest.raises(ValueError, match="p_min=0"):
        bounded_cross_entropy(MODEL, p_min=0)
