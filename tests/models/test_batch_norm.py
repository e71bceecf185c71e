import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pflalign_jax import models
from pflalign_jax.models.base import batch_features, dense, mean_of_real


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 3)) * 2 + 1
    return models.Batch(x, jnp.array([0, 3, 1, 2, 2]), jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]))


def close(a, b, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


class FlaxNorm(nn.Module):
    """Flax's own batch normalisation in training."""

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False, epsilon=1e-5)(x)


class Small(nn.Module):
    """Batch normalisation between two dense layers."""

    @nn.compact
    def __call__(self, x, mask=None):
        x = nn.Dense(3)(x.reshape(x.shape[0], -1))
        return nn.Dense(4)(nn.relu(models.BatchNorm()(x, mask)))


def test_features_of_a_training_batch_are_those_of_the_training_loss(batch):
    """Methods on features normalise by the batch and keep running statistics, as others do."""
    model = models.from_flax(Small(), head="Dense_1")
    model = model._replace(train_apply=model.apply, train_features=model.features)
    params = model.init(jax.random.key(0), batch.x)

    def loss(params):
        z = batch_features(model, params, batch)
        losses = models.example_losses(dense(params["Dense_1"], z), batch.y)
        return mean_of_real(losses, batch.mask)

    found = jax.value_and_grad(loss)(params)
    expected = jax.value_and_grad(models.cross_entropy(model))(params, batch, None)
    close(found, expected, 1e-5, 1e-6)
    assert np.abs(found[1]["BatchNorm_0"]["mean"]).max() > 1e-3
    evaluated = model._replace(train_features=None)
    apart = batch_features(evaluated, params, batch) - batch_features(model, params, batch)
    assert np.abs(apart).max() > 1e-2
    assert models.resnet(4, depth=10, width=4, norm="batch").train_features is not None


def norm_model():
    norm = models.BatchNorm()
    return models.Model(
        lambda key, x: norm.init(key, x)["params"],
        lambda params, x: norm.apply({"params": params}, x),
        lambda params, x, mask: norm.apply({"params": params}, x, mask),
    )


@pytest.fixture(scope="module")
def norm_params():
    return {
        "scale": jnp.array([1.0, 2.0, 0.5]),
        "bias": jnp.array([0.1, -0.2, 0.0]),
        "mean": jnp.array([5.0, -1.0, 0.0]),
        "var": jnp.array([2.0, 0.5, 1.0]),
    }


def test_training_equals_flax(batch, norm_params):
    layer = {name: norm_params[name] for name in ("scale", "bias")}
    direction = jax.random.normal(jax.random.key(3), batch.x.shape)

    def ours(scale_and_bias, x):
        out = norm_model().train_apply({**norm_params, **scale_and_bias}, x, jnp.ones(5))
        return jnp.sum(out * direction), out

    def reference(scale_and_bias, x):
        out, _ = FlaxNorm().apply(
            {"params": {"BatchNorm_0": scale_and_bias}}, x, mutable=["batch_stats"]
        )
        return jnp.sum(out * direction), out

    found, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(layer, batch.x)
        for f in (ours, reference)
    )
    close(found, expected, rtol=1e-3, atol=1e-4)


def test_running_statistics_are_exponential_averages_under_sgd(batch, norm_params):
    eta, steps = 0.3, 3
    model, tx = norm_model(), optax.sgd(eta)
    data = jax.random.normal(jax.random.key(4), (steps, 5, 2, 3, 3)) * 3 + 1
    mask = jnp.array([[1.0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])

    def loss(params, x, mask):
        return 17 * jnp.sum(jnp.cos(model.train_apply(params, x, mask)))

    def step(t, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, data[t], mask[t]), state)
        return optax.apply_updates(params, updates), state

    start = norm_params, tx.init(norm_params)
    found, _ = jax.jit(lambda c: jax.lax.fori_loop(0, steps, step, c))(start)
    mean, var = norm_params["mean"], norm_params["var"]
    for x, chosen in zip(np.asarray(data), np.asarray(mask), strict=True):
        real = x[chosen > 0].reshape(-1, 3)
        mean = (1 - eta) * mean + eta * real.mean(axis=0)
        var = (1 - eta) * var + eta * real.var(axis=0)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-5)


def test_running_statistics_do_not_enter_the_training_loss(batch, norm_params):
    model = norm_model()
    other = {**norm_params, "mean": jnp.zeros(3), "var": jnp.full(3, -1.0)}
    np.testing.assert_array_equal(
        model.train_apply(norm_params, batch.x, batch.mask),
        model.train_apply(other, batch.x, batch.mask),
    )


def test_evaluation_uses_the_running_statistics(batch, norm_params):
    params = {**norm_params, "var": jnp.array([2.0, 0.5, -1.0])}
    out = norm_model().apply(params, batch.x)
    scale, bias, mean = (np.asarray(params[name]) for name in ("scale", "bias", "mean"))
    deviation = np.sqrt(np.array([2.0, 0.5, 0.0]) + 1e-5)
    expected = (np.asarray(batch.x) - mean) / deviation * scale + bias
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_second_derivatives_see_a_quadratic(batch, norm_params):
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(norm_model().train_apply(p, batch.x, batch.mask) ** 2))(
            params
        )

    tangent = jax.tree.map(jnp.ones_like, norm_params)
    product = jax.jvp(gradient, (norm_params,), (tangent,))[1]
    np.testing.assert_allclose(product["mean"], np.ones(3))
    np.testing.assert_allclose(product["var"], np.ones(3))


def test_bfloat16_keeps_training_apart_from_evaluation(batch, norm_params):
    model = norm_model()
    half = models.with_compute_dtype(model, "bfloat16")
    for found, expected in (
        (half.apply(norm_params, batch.x), model.apply(norm_params, batch.x)),
        (half.train_apply(norm_params, *batch[::2]), model.train_apply(norm_params, *batch[::2])),
    ):
        assert found.dtype == jnp.float32
        assert 1e-6 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    found, expected = (
        jax.jit(jax.grad(lambda p, m=m: jnp.sum(m.train_apply(p, batch.x, batch.mask) ** 3)))(
            norm_params
        )
        for m in (half, model)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    for name in ("mean", "var"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.02, atol=0.02)


def test_training_loss_uses_train_apply():
    model = models.Model(
        lambda key, x: {}, lambda params, x: x, lambda params, x, mask: x * mask[:, None]
    )
    batch = models.Batch(jnp.array([[2.0, 0.0]]), jnp.array([0]), jnp.array([0.5]))
    loss = models.cross_entropy(model)({}, batch, None)
    assert float(loss) == pytest.approx(0.5 * np.log1p(np.exp(-1.0)), rel=1e-6)
    assert models.with_compute_dtype(models.logistic(2), "bfloat16").train_apply is None
    assert models.Model(model.init, model.apply).train_apply is None
