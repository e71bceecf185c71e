import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax import models


def small(norm, conv="patches"):
    return models.resnet(4, depth=10, width=8, norm=norm, conv=conv)


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 3)) * 2 + 1
    return models.Batch(x, jnp.array([0, 3, 1, 2, 2]), jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]))


@pytest.fixture(scope="module", params=["group", "batch"])
def norm(request):
    return request.param


def draw(model, x):
    """Parameters at random, none of them 0 or 1, without compiling the model's own start."""
    rng = np.random.default_rng(1)

    def leaf(path, shape):
        positive = path[-1].key in ("scale", "var")
        drawn = rng.uniform(0.5, 1.5, shape.shape) if positive else rng.normal(0, 0.2, shape.shape)
        return drawn.astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def params(norm, batch):
    return draw(small(norm), batch.x)


@pytest.fixture(scope="module")
def step(norm):
    """The loss and its gradient, compiled once for all tests."""
    loss = models.cross_entropy(small(norm))
    return jax.jit(lambda params, batch: jax.value_and_grad(loss)(params, batch, None))


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize(
    "depth, norm, count",
    [
        (18, "group", 11_173_962),
        (18, "batch", 11_173_962 + 9_600),
        (10, "group", 4_903_242),
        (10, "batch", 4_903_242 + 5_760),
    ],
)
def test_parameter_count(depth, norm, count):
    model = models.resnet(10, depth=depth, norm=norm)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert jax.eval_shape(model.apply, shapes, x).shape == (2, 10)


def test_layers_have_names(norm, params):
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    rest = [path for path in paths if "Norm" not in path]
    assert all("Conv_" in path or "Dense_0" in path for path in rest)
    norms = {f"{norm.title()}Norm_{i}" for i in range(3)}
    assert set(params["BasicBlock_1"]) == norms | {"Conv_0", "Conv_1", "Conv_2"}
    leaves = {"group": {"scale", "bias"}, "batch": {"scale", "bias", "mean", "var"}}
    assert set(params[f"{norm.title()}Norm_0"]) == leaves[norm]


def test_patches_and_lax_agree(norm, params, batch, step):
    loss = models.cross_entropy(small(norm, "lax"))
    expected = jax.jit(lambda p, b: jax.value_and_grad(loss)(p, b, None))(params, batch)
    found = step(params, batch)
    close(found, expected, rtol=5e-3, atol=1e-3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_evaluation_looks_at_one_example(norm, params, batch):
    apply = jax.jit(small(norm).apply)
    logits = apply(params, batch.x)
    assert logits.shape == (5, 4)
    others = batch.x.at[1:].multiply(-7.0)
    np.testing.assert_array_equal(apply(params, others)[0], logits[0])
    turned = apply(params, jnp.roll(batch.x, 2, axis=0))
    np.testing.assert_allclose(turned[2], logits[0], rtol=1e-4, atol=1e-5)


def test_group_norm_is_the_same_in_training():
    assert small("group").train_apply is None


@pytest.mark.parametrize("channels, groups", [(8, 2), (64, 16), (512, 32), (136, 17), (3, 1)])
def test_groups_divide_channels(channels, groups):
    model = models.resnet(2, depth=10, width=channels)
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    jaxpr = str(jax.make_jaxpr(lambda x: model.init(jax.random.key(0), x))(x))
    assert f"f32[1,4,4,{groups},{channels // groups}]" in jaxpr


@pytest.mark.parametrize(
    "norm", ["group", pytest.param("batch", marks=pytest.mark.slow)], indirect=True
)
def test_clients_in_vmap_equal_a_loop(params, batch, step):
    clients = jax.tree.map(lambda a: np.stack([a, 1.1 * a, 0.9 * a]), params)
    data = models.Batch(
        jnp.stack([batch.x, batch.x + 1, -batch.x]),
        jnp.stack([batch.y, batch.y, batch.y[::-1]]),
        jnp.stack([batch.mask, jnp.ones(5), batch.mask]),
    )
    found = jax.jit(jax.vmap(step))(clients, data)
    for i in range(3):
        client, its_batch, its_found = jax.tree.map(lambda a, i=i: a[i], (clients, data, found))
        close(its_found, step(client, its_batch), rtol=5e-3, atol=1e-3)


def test_masked_examples_do_not_matter(params, batch, step):
    other = batch._replace(x=batch.x.at[4].set(1e4), y=batch.y.at[4].set(0))
    close(step(params, other), step(params, batch), rtol=1e-5)


def test_a_single_example_trains(params, batch, step):
    one = batch._replace(mask=jnp.array([1.0, 0, 0, 0, 0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step(params, one)))


def test_batch_without_examples_moves_nothing(params, batch, step):
    value, gradient = step(params, batch._replace(mask=jnp.zeros(5)))
    assert value == 0
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, jnp.zeros_like(g)), gradient)


@pytest.mark.parametrize("norm", ["batch"], indirect=True)
def test_running_statistics_follow_inside_the_network(norm, params, batch, step):
    features = jax.lax.conv_general_dilated(
        batch.x[:4],
        params["Conv_0"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found, leaves = step(params, batch)[1]["BatchNorm_0"], params["BatchNorm_0"]
    axes = (0, 1, 2)
    np.testing.assert_allclose(found["mean"], leaves["mean"] - features.mean(axes), atol=1e-4)
    np.testing.assert_allclose(found["var"], leaves["var"] - features.var(axes), atol=1e-4)


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"depth": 34}, r"depth=34 is unknown; use one of \[10, 18\]"),
        ({"norm": "layer"}, "norm='layer' is unknown; use one of"),
        ({"conv": "winograd"}, "conv='winograd' is unknown"),
        ({"width": 0}, "width=0 is not allowed"),
    ],
)
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        models.resnet(10, **argument)
