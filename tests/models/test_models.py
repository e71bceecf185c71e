import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import max_pool as flax_max_pool

from pflalign_jax import models
from pflalign_jax.models.conv import max_pool, patch_conv


class ReferenceCNN(nn.Module):
    """The FedAvg CNN in flax's own layers, nothing of ours."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.Conv(features, (5, 5), padding="VALID")(x)
            x = nn.relu(flax_max_pool(x, (2, 2), strides=(2, 2)))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (3, 28, 28, 1))


@pytest.mark.parametrize("conv", ["patches", "lax"])
def test_cnn_equals_flax_layers(images, conv):
    ours, reference = models.cnn(10, conv=conv), models.from_flax(ReferenceCNN())
    params = ours.init(jax.random.key(1), images)
    expected_params = reference.init(jax.random.key(1), images)
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 582_026
    np.testing.assert_allclose(
        ours.apply(params, images), reference.apply(params, images), rtol=1e-4, atol=1e-5
    )


def test_cnn_gradients_equal_flax_layers(images):
    ours, reference = models.cnn(10), models.from_flax(ReferenceCNN())
    params = reference.init(jax.random.key(1), images)
    batch = models.Batch(images, jnp.array([1, 2, 3]), jnp.ones(3))
    found, expected = (
        jax.jit(jax.grad(models.cross_entropy(model)))(params, batch, None)
        for model in (ours, reference)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), found, expected
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 2), (0, 1)]])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3)])
def test_patch_conv_equals_lax(padding, strides):
    x = jax.random.normal(jax.random.key(0), (2, 9, 11, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 4, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        patch_conv(x, kernel, strides, padding), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("channels", [1, 6], ids=["tiled", "not tiled"])
def test_patch_conv_gradients_equal_lax(channels):
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, channels))
    kernel = jax.random.normal(jax.random.key(1), (4, 5, channels, 3))

    def loss(conv, x, kernel):
        out = conv(x, kernel, (2, 1), "VALID", dimension_numbers=numbers)
        return jnp.sum(jnp.sin(out))

    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    found, expected = (
        jax.grad(lambda *args, c=conv: loss(c, *args), argnums=(0, 1))(x, kernel)
        for conv in (patch_conv, jax.lax.conv_general_dilated)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_hessian_vector_products_of_the_cnn():
    ours, reference = (
        models.cnn(10, features=(4, 6), dense=8),
        models.cnn(10, conv="lax", features=(4, 6), dense=8),
    )
    x = jax.random.normal(jax.random.key(0), (3, 28, 28, 1))
    params = ours.init(jax.random.key(1), x)
    batch = models.Batch(x, jnp.array([1, 2, 3]), jnp.ones(3))

    def product(model):
        gradient = jax.grad(lambda p: models.cross_entropy(model)(p, batch, None))
        return jax.jit(lambda p: jax.jvp(gradient, (p,), (p,))[1])(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4),
        product(ours),
        product(reference),
    )


def test_equal_maxima_share_the_gradient():
    x = jnp.array([[1.0, 3.0], [3.0, 2.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_allclose(gradient[0, :, :, 0], [[0, 0.5], [0.5, 0]])


def test_patch_conv_refuses_what_it_cannot_do():
    x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 1, 4))
    with pytest.raises(NotImplementedError, match="feature_group_count=2"):
        patch_conv(x, kernel, (1, 1), "SAME", feature_group_count=2)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 9, 2)])
def test_max_pool_equals_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_array_equal(
        max_pool(x), flax_max_pool(x, (2, 2), strides=(2, 2), padding="VALID")
    )


def test_logistic_is_one_dense_layer():
    model = models.logistic(4)
    params = model.init(jax.random.key(0), jnp.ones((1, 5)))
    x = jax.random.normal(jax.random.key(1), (3, 5))
    layer = params["Dense_0"]
    assert list(params) == ["Dense_0"]
    np.testing.assert_allclose(
        model.apply(params, x), x @ layer["kernel"] + layer["bias"][None], rtol=1e-5
    )


def test_loss_ignores_padding():
    model = models.logistic(2)
    params = {"Dense_0": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}}
    loss = models.cross_entropy(model)
    batch = models.Batch(jnp.array([[1.0], [100.0]]), jnp.array([0, 1]), jnp.array([1.0, 0.0]))
    assert float(loss(params, batch, None)) == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-6)
    nothing = batch._replace(mask=jnp.zeros(2))
    assert float(loss(params, nothing, None)) == 0


def test_sequence_scores_average_over_positions():
    logits = jnp.array([[[5.0, 0.0], [0.0, 5.0]], [[5.0, 0.0], [5.0, 0.0]]])
    labels = jnp.array([[0, 0], [0, 0]])
    np.testing.assert_allclose(models.example_hits(logits, labels), [0.5, 1.0])
    assert models.example_losses(logits, labels).shape == (2,)


def test_model_with_running_statistics_is_refused():
    with pytest.raises(ValueError, match="batch_stats"):
        models.from_flax(nn.BatchNorm(use_running_average=False)).init(
            jax.random.key(0), jnp.ones((2, 3))
        )


def test_unknown_convolution_is_refused():
    with pytest.raises(ValueError, match="'winograd'"):
        models.cnn(10, conv="winograd")


def test_transformer_looks_only_back():
    model = models.transformer(11, width=8, layers=2, heads=2)
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
    params = model.init(jax.random.key(1), tokens)
    logits = model.apply(params, tokens)
    assert logits.shape == (2, 6, 11)
    changed = model.apply(params, tokens.at[:, 4].set((tokens[:, 4] + 1) % 11))
    np.testing.assert_allclose(changed[:, :4], logits[:, :4], atol=1e-6)
    assert np.abs(changed[:, 4:] - logits[:, 4:]).min(axis=-1).max() > 1e-4
    with pytest.raises(ValueError, match="heads=3 does not divide width=8"):
        models.transformer(11, width=8, heads=3)


def test_computing_in_bfloat16(images):
    model = models.cnn(10, features=(4, 6), dense=8)
    half = models.with_compute_dtype(model, "bfloat16")
    params = jax.jit(half.init)(jax.random.key(1), images)
    logits = half.apply(params, images)
    assert logits.dtype == jnp.float32
    expected = model.apply(params, images)
    assert 1e-6 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    batch = models.Batch(images, jnp.array([1, 2, 3]), jnp.ones(3))
    gradients = jax.jit(jax.grad(models.cross_entropy(half)))(params, batch, None)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(half.apply)(params, images))
    assert "bf16[3,96]" in jaxpr


def test_tokens_are_not_cast():
    model = models.with_compute_dtype(models.transformer(1000, width=8, heads=2), "bfloat16")
    tokens = jnp.array([[999, 513, 514]])
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    assert not np.allclose(*model.apply(params, jnp.array([[513], [514]]).repeat(3, 1)))
