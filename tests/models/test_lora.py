"""Low-rank adapters, and weights that nobody trains."""

import inspect
import math
import pickle
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import pflalign_jax as pfl
from pflalign_jax import algorithms, models
from pflalign_jax.federated import federate
from pflalign_jax.messages import chain, clip, top_k, transform_messages
from pflalign_jax.models.frozen import Frozen, as_argument
from pflalign_jax.models.lora import Dropout
from pflalign_jax.runs import RunError, factories, loop
from pflalign_jax.runs.signals import StoppedError

BASE = models.mlp(10, hidden=(20, 12))


@pytest.fixture(scope="module")
def weights():
    params = BASE.init(jax.random.key(7), jnp.zeros((1, 8, 8, 1)))
    return jax.tree.map(np.asarray, params)


@pytest.fixture(scope="module")
def data():
    return pfl.datasets.digits(num_clients=6, fraction=0.3, validation_fraction=0.1)


def adapted(weights, alpha=2.0, **options):
    return models.lora(BASE, weights, rank=2, alpha=alpha, **options)


def first_params(model):
    return model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))


def test_it_begins_at_the_model_and_trains_little(weights):
    model = adapted(weights)
    params = first_params(model)
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(model.apply(params, x), BASE.apply(weights, x))
    shapes = {path: {n: a.shape for n, a in one.items()} for path, one in params["lora"].items()}
    assert shapes == {
        "Dense_0": {"a": (64, 2), "b": (2, 20)},
        "Dense_1": {"a": (20, 2), "b": (2, 12)},
    }
    assert set(params) == {"lora", "Dense_2"} and "Dense_2" not in model.frozen.weights
    assert float(jnp.abs(params["lora"]["Dense_0"]["a"]).max()) <= 1 / 8  # 1 / sqrt(64)


def test_what_is_added(weights):
    model = adapted(weights, alpha=6.0, targets=("Dense_1",))
    params = first_params(model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32), params)
    assert set(params["lora"]) == {"Dense_1"}
    x = rng.normal(size=(5, 8, 8, 1)).astype(np.float32)
    a, b = (np.asarray(params["lora"]["Dense_1"][name]) for name in ("a", "b"))
    hidden = np.maximum(
        x.reshape(5, 64) @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"], 0
    )
    z = hidden @ weights["Dense_1"]["kernel"] + weights["Dense_1"]["bias"] + 6 / 2 * hidden @ a @ b
    z = np.maximum(z, 0)
    np.testing.assert_allclose(model.features(params, x), z, rtol=2e-4, atol=1e-4)
    head = jax.tree.map(np.asarray, params["Dense_2"])
    logits = z @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(model.apply(params, x), logits, rtol=2e-4, atol=1e-4)
    sums = {"Dense_1": {**params["lora"]["Dense_1"], "merged": rng.normal(size=(20, 12))}}
    with_sum = {**params, "lora": jax.tree.map(jnp.float32, sums)}
    found = BASE.apply(models.merge(model, with_sum), x)
    np.testing.assert_allclose(model.apply(with_sum, x), found, rtol=2e-4, atol=1e-3)
    assert np.abs(found - logits).max() > 1
    merged = models.merge(model, params)
    np.testing.assert_allclose(BASE.apply(merged, x), logits, rtol=2e-4, atol=1e-4)
    assert jax.tree.structure(merged) == jax.tree.structure(weights)


IMAGE, TOKENS = jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, 7), jnp.int32)
PARTS = ("query", "key", "value", "out")
ATTENTION = [f"Block_0/MultiHeadDotProductAttention_0/{name}" for name in PARTS]
OF_EACH_MODEL = {
    "logistic": (models.logistic(3), IMAGE, []),
    "mlp": (models.mlp(3, hidden=(6, 5)), IMAGE, ["Dense_0", "Dense_1"]),
    "cnn": (models.cnn(3), IMAGE, ["Dense_0"]),
    "resnet": (models.resnet(3), jnp.zeros((1, 32, 32, 3)), []),
    "transformer": (models.transformer(11, 12, 1, 3), TOKENS,
                    ["Block_0/Dense_0", "Block_0/Dense_1", *ATTENTION]),
    "lstm": (models.lstm(11, 4, 6), TOKENS, []),
    "fasttext": (models.fasttext(3, 11, 6), TOKENS, []),
    "har_cnn": (models.har_cnn(3, channels=5, kernel=3, dense=7), jnp.zeros((1, 21, 2)),
                ["Dense_0"]),
}  # fmt: skip
"""Small models, zeros in the shape of an example, and their dense layers below the head."""


def random_tree(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", [n for n in models.NAMES if not n.startswith("pretrained")])
def test_dense_layers_of_all_our_models(name):
    base, x, layers = OF_EACH_MODEL[name]
    params = random_tree(jax.eval_shape(base.init, jax.random.key(0), x), 0)
    if not layers:
        with pytest.raises(
            ValueError, match=r"no dense layer fits target '\*'; the model has none"
        ):
            models.lora(base, params)
        assert models.lora(base, params, rank=0).adapters is None
        return
    model = models.lora(base, params, rank=2, alpha=6.0)
    adapters = random_tree(jax.eval_shape(model.init, jax.random.key(0), x), 1)
    assert sorted(adapters["lora"]) == sorted(layers)
    x = jax.random.randint(jax.random.key(0), (2, *x.shape[1:]), 0, 3).astype(x.dtype)
    found, plain = jax.jit(model.apply)(adapters, x), jax.jit(base.apply)
    merged = models.merge(model, adapters)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(found, plain(merged, x), rtol=1e-3, atol=1e-3)
    without = merged | {name: params[name] for name in params if name not in model.head}
    assert np.abs(found - plain(without, x)).max() > 0.1


def test_adapters_of_attention_are_of_its_kernels_as_matrices():
    base, x, _ = OF_EACH_MODEL["transformer"]
    params = random_tree(jax.eval_shape(base.init, jax.random.key(0), x), 0)
    model = models.lora(base, params, rank=2, targets=("*/query", "*/out"))
    shapes = jax.tree.map(jnp.shape, model.init(jax.random.key(0), x)["lora"])
    assert shapes == {
        ATTENTION[0]: {"a": (12, 2), "b": (2, 12)},
        ATTENTION[3]: {"a": (12, 2), "b": (2, 12)},
    }


class Lookup(nn.Module):
    """A layer whose kernel is no dense layer's."""

    @nn.compact
    def __call__(self, x):
        return self.param("kernel", nn.initializers.ones, (4, 3))[x[:, 0].astype(int)]


class OddModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(Lookup()(x))


def test_a_layer_that_is_not_dense_is_named():
    base = models.from_flax(OddModel(), head="Dense_0")
    x = jnp.zeros((2, 1))
    model = models.lora(base, base.init(jax.random.key(0), x))
    with pytest.raises(ValueError, match="layer 'Lookup_0' is a Lookup, which is no product"):
        model.apply(model.init(jax.random.key(0), x), x)


def test_dropout_of_the_adapters_inputs(weights):
    model = adapted(weights, dropout=0.5)
    params = first_params(model)
    rng = np.random.default_rng(0)
    params["lora"] = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32),
                                  params["lora"])  # fmt: skip
    x = rng.normal(size=(64, 8, 8, 1)).astype(np.float32)
    batch = models.Batch(x, np.zeros(64, np.int32), np.ones(64, np.float32))
    loss = models.cross_entropy(model)
    values = [float(loss(params, batch, jax.random.key(i))) for i in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    plain = adapted(weights)
    # It is not used when models are scored.
    np.testing.assert_array_equal(model.apply(params, x), plain.apply(params, x))
    # Without adapters that do something there is nothing to drop.
    untrained = first_params(model)
    assert float(loss(untrained, batch, jax.random.key(0))) == pytest.approx(
        float(models.cross_entropy(plain)(untrained, batch, jax.random.key(0))), rel=1e-6
    )


def test_half_of_the_inputs_are_dropped_and_the_others_doubled():
    dropped = Dropout(0.5, jax.random.key(0), ("a", "b"))
    x = dropped.of(jnp.ones(1000), "b")
    assert set(np.unique(x).tolist()) == {0, 2} and 0.4 < float((x > 0).mean()) < 0.6
    assert (x != dropped.of(jnp.ones(1000), "a")).any()


def test_the_head_alone(weights):
    model = models.lora(BASE, weights, rank=0)
    params = first_params(model)
    assert params["lora"] == {} and set(params) == {"lora", "Dense_2"}
    body = {name: layer for name, layer in weights.items() if name != "Dense_2"}
    fresh = first_params(models.lora(BASE, body, rank=0))
    assert fresh["Dense_2"]["kernel"].shape == (12, 10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"targets": ("layer_*",)}, r"no dense layer fits target 'layer_\*'; the layers are "),
        ({"rank": -1}, "rank=-1 is not allowed"),
        ({"dropout": 1.0}, r"dropout=1\.0 is not allowed"),
        ({"targets": ("Dense_2",)}, "'Dense_2'"),  # of the head
    ],
)
def test_what_is_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        models.lora(BASE, weights, **options)


def trained(model, data, name="fedavg", rounds=2, **options):
    factory = getattr(algorithms, name)
    takes = inspect.signature(factory).parameters
    known = {"num_classes": 10, "num_clients": data.num_clients, "learning_rate": 0.05}
    given = {k: v for k, v in known.items() if k in takes}
    federation = federate(factory(model, **given), model, data, **options)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    return federation, state


def closed_over(model):
    """Return the model with its frozen weights as constants, as without `Model.frozen`."""
    return model._replace(frozen=None)


@pytest.mark.slow  # that weights are arguments: test_frozen_weights_are_in_no_state...
@pytest.mark.parametrize("name", ["pflalign", "ditto"])
def test_an_argument_is_no_other_than_a_constant(weights, data, name):
    model = adapted(weights)
    federation, state = trained(model, data, name, rounds=0)
    before = federation.evaluate(state, adapt=False)["test/personal/received"].loss
    losses = [
        federation.evaluate(state)["test/personal/adapted"].loss
        for federation, state in (trained(m, data, name) for m in (model, closed_over(model)))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0].mean() < before.mean()


def test_results_do_not_depend_on_devices_and_chunk(weights, data):
    losses = []
    for devices, chunk, place in ((8, 1, "device"), (2, 3, "host")):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("clients",))
        federation, state = trained(
            adapted(weights), data, "fedavg", mesh=mesh, client_chunk=chunk,
            client_state_in=place, cohort_size=4,
        )  # fmt: skip
        losses.append(federation.evaluate(state)["test/personal/adapted"].loss)
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_frozen_weights_are_in_no_state_message_or_program(weights, data):
    wide = models.mlp(10, hidden=(400,))
    params = jax.tree.map(np.asarray, wide.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    model = models.lora(wide, params, rank=2)
    federation, state = trained(model, data, rounds=0)
    trainable = 2 * (64 + 400) + 400 * 10 + 10
    assert federation.bytes_per_round == (6 * 4 * trainable, 6 * 4 * trainable)
    assert sum(a.size for a in jax.tree.leaves(state.server)) < 64 * 400
    # A program that has them as constants writes out 64 x 400 numbers.
    constants = [line for line in federation.lower_round(state).as_text().splitlines()
                 if "constant" in line and "64x400" in line]  # fmt: skip
    assert not constants


def test_messages_are_clipped_and_compressed_and_states_are_on_disk(weights, data, tmp_path):
    model = adapted(weights)
    transforms = chain(clip(0.5), top_k(0.25, error_feedback=True))
    algorithm = transform_messages(algorithms.pflalign(model, 0.5), transforms, data)
    mesh = Mesh(np.array(jax.devices()[:1]), ("clients",))
    federation = federate(
        algorithm, model, data, mesh=mesh, client_state_in="disk", state_dir=tmp_path / "states"
    )
    state = federation.init(jax.random.key(0))
    first = jax.tree.map(np.asarray, (state.server, federation.client_state(state, 2)))
    for _ in range(2):
        state, _ = federation.run_round(state)
    last = jax.tree.map(np.asarray, (state.server, federation.client_state(state, 2)))
    moved = [
        [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, pair), strict=True)]
        for pair in zip(first, last, strict=True)
    ]
    assert all(0 < max(one) < 10 for one in moved)  # adapters at the server, states on disk
    trainable = 2 * (64 + 20) + 2 * (20 + 12) + 12 * 10 + 10
    # A quarter of the coordinates of each client, each with its position.
    assert federation.bytes_per_round.up == 6 * 8 * math.ceil(trainable / 4)
    assert any((tmp_path / "states").rglob("*"))


# Each of them trains the adapters of a model whose weights below are frozen.
FAST = ("fedproto",)  # pflalign: above


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow)
     for n in algorithms.NAMES if n != "fedbn"],
)  # fmt: skip
def test_every_algorithm_trains_adapters(weights, data, name):
    federation, state = trained(adapted(weights), data, name, rounds=2)
    scores = federation.evaluate(state)
    assert np.isfinite(scores["test/personal/adapted"].loss).all()


def test_a_program_in_a_program():
    frozen = Frozen({"w": np.float32(2)})

    def inner(x):
        return x * frozen.weights["w"]

    def outer(x):
        first = inner(x)
        return first + jax.jit(as_argument(frozen, inner))({"w": jnp.float32(10)}, x) + inner(x)

    found = jax.jit(as_argument(frozen, outer))({"w": jnp.float32(3)}, jnp.float32(1))
    assert float(found) == 3 + 10 + 3 and float(inner(1)) == 2
    with pytest.raises(ZeroDivisionError):
        as_argument(frozen, lambda: 1 / 0)({"w": 5})
    assert float(inner(1)) == 2  # also after an error


def test_the_digest_tells_weights_apart():
    weights = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    digest = Frozen(weights).digest
    assert len(digest) == 64 and digest == Frozen(pickle.loads(pickle.dumps(weights))).digest
    others = [
        {"b": weights["a"]},
        {"a": {"kernel": np.ones((3, 2), np.float32)}},
        {"a": {"kernel": np.ones((2, 3), np.float16)}},
        {"a": {"kernel": np.array([[1, 1, 1], [1, 1, 1.5]], np.float32)}},
    ]
    assert digest not in [Frozen(other).digest for other in others]


OWN_MODEL = """
import jax
import jax.numpy as jnp
import pflalign_jax as pfl

SEED = 0


def adapted(num_classes):
    base = pfl.models.mlp(num_classes, hidden=(12,))
    params = base.init(jax.random.key(SEED), jnp.zeros((1, 8, 8, 1)))
    return pfl.models.lora(base, params, rank=2)
"""


def test_a_run_goes_on_and_is_loaded_with_its_weights_only(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "matmul_peak", lambda: 1e11)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_lora.py").write_text(OWN_MODEL)
    monkeypatch.setattr(factories, "_OUTSIDE", {section: {} for section in factories.FACTORIES})
    config = pfl.runs.default_config(model="own_lora:adapted")
    config.rounds, config.checkpoint_every = 2, 1
    config.dataset.num_clients, config.dataset.fraction = 4, 0.2
    config.algorithm.name = "fedavg"
    stops = iter([15])
    with pytest.raises(StoppedError):
        pfl.runs.run(config, tmp_path / "run", stop=lambda: next(stops))
    monkeypatch.setattr(sys.modules["own_lora"], "SEED", 1)
    with pytest.raises(RunError, match="was run with frozen weights of SHA-256"):
        pfl.load_run(tmp_path / "run")
    with pytest.raises(RunError, match="Give the model the files that it had"):
        pfl.runs.run(config, tmp_path / "run")
    monkeypatch.setattr(sys.modules["own_lora"], "SEED", 0)
    dataset = pfl.runs.run(config, tmp_path / "run").experiment.dataset
    assert pfl.load_run(tmp_path / "run").predict(dataset.x[:3], 0).shape == (3, 10)
    monkeypatch.delitem(sys.modules, "own_lora")
