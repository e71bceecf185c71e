import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pflalign_jax import models


def tokens(key, shape, size):
    return jax.random.randint(jax.random.key(key), shape, 0, size)


def small_models():
    """Name, small model, features and labels of three clients with batches of four."""
    characters = tokens(0, (3, 4, 7), 11)
    return [
        ("lstm", models.lstm(11, 4, 6), characters, jnp.roll(characters, -1, axis=2)),
        ("fasttext", models.fasttext(5, 30, 6), tokens(1, (3, 4, 9), 30), tokens(2, (3, 4), 5)),
        (
            "har",
            models.har_cnn(6, channels=5, kernel=3, dense=7),
            jax.random.normal(jax.random.key(3), (3, 4, 21, 2)),
            tokens(4, (3, 4), 6),
        ),
    ]


def draw(model, x, clients=()):
    """Parameters at random, without compiling the model's own start."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.5, (*clients, *s.shape)), s.dtype), shapes
    )


@pytest.fixture(scope="module", params=small_models(), ids=lambda case: case[0])
def case(request):
    _, model, x, y = request.param
    batches = models.Batch(x, y, jnp.array([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]))
    return model, draw(model, x[0], clients=(3,)), batches


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize(
    "model, x, count, logits",
    [
        (models.lstm(90), ((2, 80), jnp.int32), 820_522, (2, 80, 90)),
        (models.lstm(80), ((2, 80), jnp.uint16), 817_872, (2, 80, 80)),
        (models.fasttext(4), ((2, 50), jnp.int32), 1_280_260, (2, 4)),
        (models.har_cnn(6), ((2, 128, 9), jnp.float32), 256_070, (2, 6)),
    ],
    ids=["lstm", "lstm 80", "fasttext", "har"],
)
def test_parameter_counts_and_shapes(model, x, count, logits):
    x = jax.ShapeDtypeStruct(*x)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    out = jax.eval_shape(model.apply, shapes, x)
    assert (out.shape, out.dtype) == (logits, jnp.float32)


def local_steps(model):
    """Three steps of SGD in a loop, as clients take them."""
    gradient = jax.grad(models.cross_entropy(model))

    def train(params, batch):
        def step(_, params):
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params, batch, None))

        return jax.lax.fori_loop(0, 3, step, params)

    return train


def test_clients_in_vmap_equal_a_loop(case):
    model, clients, batches = case
    train = local_steps(model)
    found = jax.jit(jax.vmap(train))(clients, batches)
    one = jax.jit(train)
    for i in range(3):
        client, batch, trained = jax.tree.map(lambda a, i=i: a[i], (clients, batches, found))
        close(trained, one(client, batch))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained, client)
        assert all(np.isfinite(m) for m in jax.tree.leaves(moved))
        assert max(jax.tree.leaves(moved)) > 1e-3


def test_clients_on_two_devices(case):
    model, clients, batches = case
    clients, batches = jax.tree.map(lambda a: a[:2], (clients, batches))
    mesh = jax.make_mesh((2,), ("clients",), devices=jax.devices()[:2])
    spec = PartitionSpec("clients")
    train = jax.vmap(local_steps(model))
    sharded = jax.shard_map(train, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    placed = jax.device_put((clients, batches), jax.sharding.NamedSharding(mesh, spec))
    close(jax.jit(sharded)(*placed), jax.jit(train)(clients, batches))


def test_bfloat16(case):
    model, clients, batches = case
    half = models.with_compute_dtype(model, "bfloat16")
    params, batch = jax.tree.map(lambda a: a[0], (clients, batches))
    found = jax.jit(half.apply)(params, batch.x)
    expected = jax.jit(model.apply)(params, batch.x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    gradient = jax.jit(jax.grad(models.cross_entropy(half)))(params, batch, None)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def derivatives(model, batch):
    """The loss, its gradient and a Hessian-vector product, ``params -> ...``."""
    gradient = jax.value_and_grad(lambda p: models.cross_entropy(model)(p, batch, None))
    return jax.jit(lambda p: (*gradient(p), jax.jvp(gradient, (p,), (p,))[1][1]))


class FlaxLSTM(nn.Module):
    """The character model in flax's own layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(11, 4)(x)
        for i in range(2):
            x = nn.RNN(nn.OptimizedLSTMCell(6, name=f"cell_{i}"))(x)
        return nn.Dense(11)(x)


def flax_layout(params):
    """Return our parameters under flax's names: a matrix for each gate."""
    layout = {name: params[name] for name in ("Embed_0", "Dense_0")}
    for i in range(2):
        layer = params[f"LSTMLayer_{i}"]
        kernels, recurrents, biases = (
            jnp.split(layer[name], 4, axis=-1) for name in ("kernel", "recurrent", "bias")
        )
        cell = {f"i{g}": {"kernel": k} for g, k in zip("ifgo", kernels, strict=True)}
        for gate, kernel, bias in zip("ifgo", recurrents, biases, strict=True):
            cell[f"h{gate}"] = {"kernel": kernel, "bias": bias}
        layout[f"cell_{i}"] = cell
    return layout


def test_lstm_equals_flax_layers():
    model, x = models.lstm(11, 4, 6), tokens(0, (5, 8), 11)
    batch = models.Batch(x, jnp.roll(x, -1, axis=1), jnp.ones(5))
    params = draw(model, x)
    expected = jax.eval_shape(FlaxLSTM().init, jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, flax_layout(params)) == jax.tree.map(jnp.shape, expected)

    value, gradient, product = derivatives(model, batch)(params)
    reference = models.Model(model.init, models.from_flax(FlaxLSTM()).apply)
    expected = derivatives(reference, batch)(flax_layout(params))
    close((value, flax_layout(gradient), flax_layout(product)), expected, rtol=1e-3)


def test_lstm_looks_only_back_and_starts_with_open_forget_gates():
    model, x = models.lstm(11, 4, 6), tokens(0, (2, 8), 11)
    params = jax.jit(model.init)(jax.random.key(1), x)
    apply = jax.jit(model.apply)
    logits = apply(params, x)
    changed = apply(params, x.at[:, 4].set((x[:, 4] + 1) % 11))
    np.testing.assert_allclose(changed[:, :4], logits[:, :4], atol=1e-6)
    assert (np.abs(changed[:, 4:] - logits[:, 4:]).max(axis=-1) > 1e-6).all()
    bias = params["LSTMLayer_1"]["bias"].reshape(4, 6)
    np.testing.assert_array_equal(bias, np.repeat([[0.0], [1], [0], [0]], 6, axis=1))


def test_fasttext_is_a_mean_of_words():
    model = models.fasttext(3, vocabulary=10, width=4)
    x = jnp.array([[7, 2, 0, 0], [2, 7, 7, 2], [0, 0, 0, 0], [5, 0, 0, 0]])
    params = draw(model, x)
    dense = {**params["Dense_0"], "bias": jnp.array([1.0, 2.0, 3.0])}
    params = {**params, "Dense_0": dense}
    table = params["Embed_0"]["embedding"]
    means = np.stack([(table[7] + table[2]) / 2, (table[7] + table[2]) / 2, 0 * table[0], table[5]])
    logits = model.apply(params, x)
    expected = means @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, x)))))(params)
    moved = np.abs(gradient["Embed_0"]["embedding"]).max(axis=1) > 0
    assert np.flatnonzero(moved).tolist() == [2, 5, 7]


def test_unknown_tokens_are_loud():
    for model in (models.fasttext(3, vocabulary=10, width=4), models.lstm(10, 4, 6)):
        params = draw(model, jnp.ones((1, 4), jnp.int32))
        logits = jax.jit(model.apply)(params, jnp.array([[1, 2, 3, 9], [1, 2, 10, 3]]))
        assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).any()


class FlaxHAR(nn.Module):
    """The activity model in flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(5, (3,), padding="VALID")(x))
            x = nn.max_pool(x, (2,), strides=(2,))
        x = nn.relu(nn.Dense(7)(x.reshape(x.shape[0], -1)))
        return nn.Dense(6)(x)


@pytest.mark.parametrize("steps", [21, 10])
def test_har_equals_flax_layers(steps):
    ours, reference = models.har_cnn(6, 5, 3, 7), models.from_flax(FlaxHAR())
    x = jax.random.normal(jax.random.key(0), (4, steps, 2))
    params = jax.jit(ours.init)(jax.random.key(1), x)
    expected_params = jax.jit(reference.init)(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    batch = models.Batch(x, tokens(4, (4,), 6), jnp.ones(4))
    found, expected = (derivatives(model, batch)(params) for model in (ours, reference))
    close(found, expected, rtol=1e-3)


def test_windows_too_short_are_refused():
    model = models.har_cnn(6)
    with pytest.raises(ValueError, match=r"T >= 28 steps for kernel=9; got .*\(2, 27, 9\)"):
        draw(model, jnp.ones((2, 27, 9)))
    with pytest.raises(ValueError, match=r"got features of shape \(2, 561\)"):
        draw(model, jnp.ones((2, 561)))
    assert draw(model, jnp.ones((2, 28, 9)))["Dense_0"]["kernel"].shape[0] == 64


@pytest.mark.parametrize(
    "factory, argument, message",
    [
        (models.lstm, {"hidden": 0}, "lstm: hidden=0 is not allowed"),
        (models.lstm, {"layers": 0}, "lstm: layers=0 is not allowed"),
        (models.fasttext, {"vocabulary": 1}, "vocabulary=1 is not allowed; it must be >= 2"),
        (models.fasttext, {"width": 0}, "width=0 is not allowed"),
        (models.har_cnn, {"kernel": 0}, "har_cnn: kernel=0 is not allowed"),
    ],
)
def test_wrong_sizes_are_refused(factory, argument, message):
    with pytest.raises(ValueError, match=message):
        factory(4, **argument)
