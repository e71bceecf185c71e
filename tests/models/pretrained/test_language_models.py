"""Pretrained language models as models of clients: adapters, a head, kept hidden states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import write_decoder, write_encoder

import pflalign_jax as pfl
from pflalign_jax import models, tasks
from pflalign_jax.models import language, pretrained
from pflalign_jax.models.base import IGNORED
from pflalign_jax.models.frozen import as_argument
from pflalign_jax.runs import loop


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(write_encoder(tmp_path_factory.mktemp("models") / "encoder"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return str(write_decoder(tmp_path_factory.mktemp("models") / "decoder"))


def texts(path, count=48, length=9, seed=0):
    """Return ``count`` texts of real tokens of a model, of 3 to ``length`` tokens, padded."""
    config = pretrained.load(path).config
    rng = np.random.default_rng(seed)
    x = rng.integers(5, config.vocabulary, (count, length)).astype(np.int32)
    for row, size in enumerate(rng.integers(3, length + 1, count)):
        x[row, size:] = config.pad_id
    return x, config


def intents(path):
    """Return a dataset of texts whose label is in their first token."""
    x, config = texts(path)
    y = (x[:, 0] % 2).astype(np.int32)
    split = np.array(["train", "train", "test"] * (len(x) // 3))
    examples = pfl.datasets.Examples("intents", x, y, 2, np.arange(len(x)) // 12, split)
    return pfl.datasets.partition_examples(examples), config


def test_kept_hidden_states_change_nothing(encoder):
    x, config = texts(encoder)
    made = [models.pretrained_encoder(3, encoder, rank=2, adapt_layers=1, keep_hidden=keep)
            for keep in (True, False)]  # fmt: skip
    params = made[0].init(jax.random.key(0), jnp.zeros((1, 9)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32), params)
    hidden = made[0].prepare(x)
    assert hidden.shape == (48, 9, config.hidden) and made[1].prepare(x) is x
    logits = [np.asarray(m.apply(params, f)) for m, f in zip(made, (hidden, x), strict=True)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
    assert made[0].prepare(x) is hidden  # of the same texts, once
    assert "lower" not in made[0].frozen.weights and "lower" in made[1].frozen.weights


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("make", "write", "name"),
    [
        (models.pretrained_encoder, write_encoder, "embeddings.LayerNorm.bias"),
        (models.pretrained_encoder, write_encoder, "encoder.layer.0.output.dense.weight"),
        (models.pretrained_decoder, write_decoder, "model.embed_tokens.weight"),
        (models.pretrained_decoder, write_decoder, "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_the_digest_is_of_all_weights(tmp_path, make, write, name, keep):
    def digest(folder):
        return make(3, str(folder), adapt_layers=1, keep_hidden=keep).frozen.digest

    folders = [write(tmp_path / kind) for kind in ("first", "same", "other")]
    tensors = load_file(folders[2] / "model.safetensors")
    tensors[name].flat[5] += 1
    save_file(tensors, folders[2] / "model.safetensors")
    first, same, other = map(digest, folders)
    assert first == same != other


def test_hidden_states_of_many_texts_are_in_a_file(encoder, monkeypatch):
    x, _ = texts(encoder)
    parts, _ = language._encoder(encoder, 1, "float32", None)
    small = language._keeping(parts, encoder)(x)
    monkeypatch.setattr(language, "LARGE", 1000)
    monkeypatch.setattr(language, "AT_ONCE", 5)
    large = language._keeping(parts, encoder)(x)
    assert isinstance(large, np.memmap) and not isinstance(small, np.memmap)
    np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x + 14, r"tokens up to 2\d, and .*encoder has embeddings of 14 tokens; encode"),
        (lambda x: np.tile(x, 2), r"texts of 18 tokens are longer than the model's context, 12"),
    ],
)
def test_texts_of_another_tokeniser_are_refused_before_training(encoder, keep, change, message):
    data, _ = intents(encoder)
    data = data._replace(x=change(data.x))
    model = models.pretrained_encoder(2, encoder, rank=2, adapt_layers=1, keep_hidden=keep)
    with pytest.raises(pretrained.PretrainedError, match=message):
        pfl.federate(pfl.algorithms.fedavg(model, 0.1), model, data)


@pytest.mark.parametrize("keep", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_clients_learn_intents(encoder, keep):
    data, _ = intents(encoder)
    model = models.pretrained_encoder(2, encoder, rank=2, adapt_layers=1, keep_hidden=keep)
    federation = pfl.federate(pfl.algorithms.fedavg(model, 0.1, local_epochs=4), model, data)
    state = federation.init(jax.random.key(0))
    first = federation.evaluate(state, adapt=False)["test/global"]
    for _ in range(4):
        state, result = federation.run_round(state)
    assert float(result.metrics["loss"]) < first.loss.mean()
    # Adapters of two layers with A and B, and the head; nothing else is sent.
    width = model.frozen.weights["layer_2"]["query"]["kernel"].shape[0]
    numbers = 2 * (2 * width + 2 * width) + 2 * width + 2
    assert federation.bytes_per_round.up == 4 * 4 * numbers


def test_next_tokens_of_a_decoder(decoder):
    x, config = texts(decoder, length=8)
    y = np.concatenate([x[:, 1:], x[:, :1]], axis=1)
    examples = pfl.datasets.Examples(
        "speeches", x, y, config.vocabulary, np.arange(48) // 12,
        np.array(["train", "train", "test"] * 16), task="next_token",
    )  # fmt: skip
    data = pfl.datasets.partition_examples(examples)
    model = models.pretrained_decoder(config.vocabulary, decoder, rank=2, adapt_layers=2)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8)))
    assert set(params) == {"lora"} and len(params["lora"]) == 4
    everywhere = models.pretrained_decoder(config.vocabulary, decoder, rank=2, adapt_layers=None)
    assert len(everywhere.init(jax.random.key(0), jnp.zeros((1, 8)))["lora"]) == 2 * config.layers
    # Without training the adapters do nothing: logits are those of the pretrained model.
    loaded = pretrained.load(decoder)
    parts = pretrained.decoder_parts(loaded.config, loaded.weights, 2)
    hidden = parts.top(parts.top_weights, parts.lower(parts.lower_weights, x), parts.mask(x))
    logits = hidden @ parts.vocabulary(parts.lower_weights).T
    np.testing.assert_allclose(model.apply(params, x), logits, rtol=1e-4, atol=1e-4)
    federation = pfl.federate(pfl.algorithms.fedavg(model, 0.1), model, data)
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    scores = federation.evaluate(state, adapt=False)
    assert np.isfinite(scores["test/global"].loss).all()


@pytest.mark.parametrize("keep, dropout", [(False, 0.0), (True, 0.5)])
def test_the_training_loss_of_a_decoder_needs_no_logits_of_all_positions(decoder, keep, dropout):
    x, config = texts(decoder, count=8, length=20)
    y = np.where(x == config.pad_id, IGNORED, np.roll(x, -1, axis=1))
    model = models.pretrained_decoder(
        config.vocabulary, decoder, rank=2, adapt_layers=1, keep_hidden=keep, dropout=dropout
    )
    x = jnp.asarray(model.prepare(x) if keep else x)
    batch = models.Batch(x, jnp.asarray(y), jnp.ones(8).at[2].set(0))
    params = model.init(jax.random.key(0), x[:1])
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), params)
    key = jax.random.key(2)

    def gradient(model):
        loss = as_argument(model.frozen, tasks.next_token().loss(model))
        return jax.jit(jax.value_and_grad(loss, argnums=1))

    arguments = (model.frozen.weights, params, batch, key)
    found, plain = gradient(model), gradient(model._replace(label_losses=None))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found(*arguments), plain(*arguments),
    )  # fmt: skip
    all_logits = f"8x20x{config.vocabulary}xf32"
    assert all_logits in plain.lower(*arguments).as_text()
    assert all_logits not in found.lower(*arguments).as_text()


def test_a_run_is_loaded_and_predicts_texts(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "matmul_peak", lambda: 1e11)
    data, _ = intents(encoder)
    x = data.x
    np.savez(tmp_path / "texts.npz", x=x, y=data.y, client=np.arange(len(x)) // 12,
             split=np.array(["train", "train", "test"] * (len(x) // 3)))  # fmt: skip
    config = pfl.runs.default_config(algorithm="fedavg", model="pretrained_encoder")
    config.rounds, config.checkpoint_every = 2, 1
    config.dataset.name, config.dataset.path = "npz", str(tmp_path / "texts.npz")
    config.model.path, config.model.rank, config.model.adapt_layers = encoder, 2, 1
    outcome = pfl.runs.run(config, tmp_path / "run")
    run = pfl.load_run(tmp_path / "run")
    mine = outcome.experiment.dataset.splits["test"].of_client(1)
    logits = run.predict(x[mine], 1)
    found = float(np.mean(logits.argmax(1) == data.y[mine]))
    assert found == outcome.scores["test/personal/received"].accuracy[1]
    for client, params in (
        (run.client_names[1], run.personal_params(1)),
        (None, run.global_params),
    ):
        folder = run.save_adapter(tmp_path / "adapter", client)
        loaded = pretrained.load_adapter(folder, run.model, jax.tree.map(jnp.zeros_like, params))
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda e, d: models.pretrained_encoder(2, d), "no encoder; use model pretrained_decoder"),
        (lambda e, d: models.pretrained_decoder(9, e), "no decoder; use model pretrained_encoder"),
        (lambda e, d: models.pretrained_decoder(10**6, d), "the data one of 1000000; encode"),
        (lambda e, d: models.pretrained_encoder(2, "nowhere"), "nowhere is neither a folder nor"),
        (lambda e, d: models.pretrained_encoder(2, e, adapt_layers=99), "adapt_layers=99"),
        (lambda e, d: models.pretrained_encoder(2, e, targets=("w",)), "no dense layer fits"),
        (lambda e, d: models.with_compute_dtype(models.pretrained_encoder(2, e), "bfloat16"),
         "does not reach frozen weights"),
    ],
)  # fmt: skip
def test_what_is_refused(encoder, decoder, make, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, decoder)
