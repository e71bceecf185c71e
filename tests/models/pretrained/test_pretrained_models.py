"""Forward passes, generation and loss of small random models, against transformers' outputs."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from make_reference import SMALL_PROMPTS, SMALL_TOKENS

from pflalign_jax.models import Model, lora, merge, pretrained

REFERENCE = pathlib.Path(__file__).with_name("reference.npz")


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(REFERENCE))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return pretrained.load(small_models.write_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return pretrained.load(small_models.write_decoder(tmp_path_factory.mktemp("decoder")))


def encoder_output(parts, tokens):
    """Return hidden states of all layers, and their mean, by both parts."""
    tokens = jnp.asarray(tokens)
    hidden = jax.jit(parts.lower)(parts.lower_weights, tokens)
    return hidden, jax.jit(parts.top)(parts.top_weights, hidden, parts.mask(tokens))


def decoder_output(parts, tokens):
    """Return the hidden states after the last norm, and logits."""
    tokens = jnp.asarray(tokens)
    hidden = jax.jit(parts.lower)(parts.lower_weights, tokens)
    hidden = jax.jit(parts.top)(parts.top_weights, hidden, parts.mask(tokens))
    return hidden, hidden @ parts.vocabulary(parts.lower_weights).T


def means(hidden, tokens):
    real = (tokens != 0)[:, :, None]
    return (hidden * real).sum(1) / real.sum(1)


@pytest.mark.parametrize("adapt_layers", [0, 1, 3])
def test_an_encoder_is_that_of_transformers(encoder, reference, adapt_layers):
    parts = pretrained.encoder_parts(encoder.config, encoder.weights, adapt_layers)
    hidden, pooled = encoder_output(parts, SMALL_TOKENS)
    expected = reference["small_encoder_hidden"]
    np.testing.assert_allclose(pooled, means(expected, SMALL_TOKENS), atol=2e-6)
    if adapt_layers == 0:  # padding has hidden states, too, which mean nothing
        np.testing.assert_allclose(
            hidden[SMALL_TOKENS != 0], expected[SMALL_TOKENS != 0], atol=5e-6
        )


@pytest.mark.parametrize("adapt_layers", [0, 1, 3])
def test_a_decoder_is_that_of_transformers(decoder, reference, adapt_layers):
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, adapt_layers)
    _, logits = decoder_output(parts, SMALL_PROMPTS)
    np.testing.assert_allclose(
        logits[SMALL_PROMPTS != 0], reference["small_decoder_logits"], atol=2e-5
    )


def test_the_output_of_a_decoder_may_be_another_matrix_than_its_embedding(tmp_path, decoder):
    folder = small_models.write_folder(
        tmp_path / "untied",
        small_models.DECODER | {"tie_word_embeddings": False},
        small_models.decoder_tensors(tied=False),
        small_models.decoder_tokenizer(),
        pad_token="<|pad|>",
    )
    untied = pretrained.load(folder)
    parts = pretrained.decoder_parts(untied.config, untied.weights, 1)
    tied = pretrained.decoder_parts(decoder.config, decoder.weights, 1)
    hidden, logits = decoder_output(parts, SMALL_PROMPTS)
    np.testing.assert_array_equal(hidden, decoder_output(tied, SMALL_PROMPTS)[0])
    head = small_models.decoder_tensors(tied=False)["lm_head.weight"]
    np.testing.assert_allclose(logits, hidden @ head.T, rtol=1e-6)


def test_padding_changes_nothing(encoder, decoder):
    wide = np.pad(SMALL_TOKENS, ((0, 0), (0, 4)))
    parts = pretrained.encoder_parts(encoder.config, encoder.weights, 1)
    np.testing.assert_allclose(
        encoder_output(parts, wide)[1], encoder_output(parts, SMALL_TOKENS)[1], atol=1e-6
    )
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 1)
    wide = np.pad(SMALL_PROMPTS, ((0, 0), (0, 4)))
    np.testing.assert_allclose(
        decoder_output(parts, wide)[0][:, :5][SMALL_PROMPTS != 0],
        decoder_output(parts, SMALL_PROMPTS)[0][SMALL_PROMPTS != 0],
        atol=1e-5,
    )


def test_text_without_a_token_is_finite(encoder, decoder):
    nothing = np.zeros((1, 4), np.int32)
    parts = pretrained.encoder_parts(encoder.config, encoder.weights, 1)
    np.testing.assert_array_equal(encoder_output(parts, nothing)[1], np.zeros((1, 16)))
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 1)
    assert np.isfinite(decoder_output(parts, nothing)[0]).all()


def test_padding_is_what_comes_after_the_last_other_token(decoder):
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 1)
    tokens = jnp.array([[0, 7, 0, 8, 0, 0], [5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0]])
    assert parts.mask(tokens).tolist() == [[True] * 4 + [False] * 2, [True] * 6, [False] * 6]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_bfloat16_is_close(kind, encoder, decoder):
    if kind == "encoder":
        make, output, model, tokens = (
            pretrained.encoder_parts,
            encoder_output,
            encoder,
            SMALL_TOKENS,
        )
    else:
        make, output, model, tokens = (
            pretrained.decoder_parts,
            decoder_output,
            decoder,
            SMALL_PROMPTS,
        )
    exact = output(make(model.config, model.weights, 1), tokens)[1]
    parts = make(model.config, model.weights, 1, "bfloat16")
    hidden, rough = output(parts, tokens)
    assert hidden.dtype == jnp.bfloat16
    assert {a.dtype.name for a in jax.tree.leaves((parts.lower_weights, parts.top_weights))} == {
        "bfloat16",
        "float32",  # norms and biases
    }
    error = np.abs(rough.astype(np.float32) - exact)[tokens[:, 0] != 0]
    assert 0 < error.max() < 0.05 * np.abs(exact).max()


def dense_paths(call):
    """Return the paths of the dense layers that a call runs."""
    paths = []

    def note(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            paths.append("/".join(context.module.path))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(call)
    return paths


def test_dense_layers_of_the_top_have_names_of_their_own(encoder, decoder):
    parts = pretrained.encoder_parts(encoder.config, encoder.weights, 2)
    hidden, mask = jnp.ones((1, 3, 16)), jnp.ones((1, 3), bool)
    names = ["query", "key", "value", "attention_output", "intermediate", "output"]
    assert dense_paths(lambda: parts.top(parts.top_weights, hidden, mask)) == [
        f"layer_{i}/{name}" for i in (1, 2) for name in names
    ]
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 2)
    hidden = jnp.ones((1, 3, 32))
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert dense_paths(lambda: parts.top(parts.top_weights, hidden, mask)) == [
        f"layer_{i}/{name}" for i in (1, 2) for name in names
    ]


def test_generation_is_that_of_transformers(decoder, reference):
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 2)
    generate = jax.jit(parts.generate, static_argnames="new_tokens")
    weights = parts.lower_weights, parts.top_weights
    answers = reference["small_decoder_answers"]
    # Rows of different length at once; -1 is no token, so that nothing ends.
    found = generate(*weights, SMALL_PROMPTS, new_tokens=8, end_id=-1)
    np.testing.assert_array_equal(found, answers)
    alone = generate(*weights, SMALL_PROMPTS[1:, :3], new_tokens=8, end_id=-1)
    np.testing.assert_array_equal(alone, answers[1:])


def test_generation_ends_at_the_end_token(decoder, reference):
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 1)
    first, second = reference["small_decoder_answers"]
    end_id = next(t for t in first[2:] if t not in first[:2] and t not in second)
    place = first.tolist().index(end_id)
    found = jax.jit(parts.generate, static_argnames="new_tokens")(
        parts.lower_weights, parts.top_weights, SMALL_PROMPTS, new_tokens=8, end_id=end_id
    )
    assert found[0].tolist() == [*first[: place + 1].tolist(), *[0] * (7 - place)]
    assert found[1].tolist() == second.tolist()


def test_adapters_act_in_the_top_layers_and_in_generation(decoder):
    """The adapted model is that with merged weights."""
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 2)
    prompts = jnp.asarray(SMALL_PROMPTS)

    def hidden(params, prompts):
        lower = parts.lower(parts.lower_weights, prompts)
        return parts.top(params, lower, parts.mask(prompts))

    def answers(params, prompts):
        return parts.generate(parts.lower_weights, params, prompts, 6, -1)

    def outputs(function):
        model = Model(init=lambda key, x: {}, apply=function)
        adapted = lora(model, parts.top_weights, targets=("layer_*/q_proj", "layer_2/down_proj"))
        params = adapted.init(jax.random.key(0), prompts)
        keys = iter(jax.random.split(jax.random.key(1), 6))
        params = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), params)
        plain = jax.jit(function)
        found = jax.jit(adapted.apply)(params, prompts)
        return found, plain(merge(adapted, params), prompts), plain(parts.top_weights, prompts)

    found, merged, unadapted = outputs(hidden)
    np.testing.assert_allclose(found, merged, atol=1e-4)
    assert np.abs(found - unadapted).max() > 0.1
    found, merged, unadapted = outputs(answers)
    np.testing.assert_array_equal(found, merged)
    assert (found != unadapted).any()


def plain_losses(hidden, vocabulary, labels):
    log_likelihoods = jax.nn.log_softmax(hidden @ vocabulary.T)
    chosen = jnp.take_along_axis(log_likelihoods, jnp.maximum(labels, 0)[..., None], 2)[..., 0]
    return jnp.where(labels < 0, 0, -chosen)


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_the_loss_in_chunks_is_the_plain_one(chunk):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 5, 8))
    vocabulary = jax.random.normal(keys[1], (30, 8))
    labels = jax.random.randint(keys[2], (2, 5), 0, 30).at[0, 3].set(-1).at[1, 0].set(-1)

    def plain(hidden, vocabulary):
        return plain_losses(hidden, vocabulary, labels).sum() / 8

    def chunked(hidden, vocabulary):
        return pretrained.vocabulary_loss(hidden, vocabulary, labels, chunk)

    np.testing.assert_allclose(
        pretrained.token_losses(hidden, vocabulary, labels, chunk),
        plain_losses(hidden, vocabulary, labels),
        rtol=1e-5,
    )
    expected = jax.value_and_grad(plain, (0, 1))(hidden, vocabulary)
    found = jax.jit(jax.value_and_grad(chunked, (0, 1)))(hidden, vocabulary)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_the_loss_in_chunks_has_second_derivatives():
    """As methods need that differentiate through a local step."""
    keys = jax.random.split(jax.random.key(1), 3)
    hidden, direction = jax.random.normal(keys[0], (2, 2, 5, 8))
    vocabulary = jax.random.normal(keys[1], (30, 8))
    labels = jax.random.randint(keys[2], (2, 5), 0, 30).at[1, 4].set(-1)

    def second(loss):
        def along(hidden):
            return jnp.sum(jax.grad(lambda h: jnp.sum(loss(h) ** 2))(hidden) * direction)

        return jax.jit(jax.grad(along))(hidden)

    chunked = second(lambda h: pretrained.token_losses(h, vocabulary, labels, 4))
    plain = second(lambda h: plain_losses(h, vocabulary, labels))
    np.testing.assert_allclose(chunked, plain, rtol=1e-4, atol=1e-5)


def test_logits_of_all_positions_never_exist():
    """Neither in the loss nor in its gradient; the largest array is one of a chunk's logits."""
    hidden, vocabulary = jnp.ones((4, 64, 8)), jnp.ones((1000, 8))
    labels = jnp.zeros((4, 64), jnp.int32)
    loss = jax.grad(lambda h: pretrained.vocabulary_loss(h, vocabulary, labels, chunk=16))
    text = jax.jit(loss).lower(hidden).as_text()
    assert "16x1000xf32" in text
    assert not any(f"{rows}x1000xf32" in text for rows in ("256", "4x64", "16x16"))


def test_a_loss_without_labels_is_zero():
    labels = jnp.full((1, 3), -1)
    assert pretrained.vocabulary_loss(jnp.ones((1, 3, 2)), jnp.ones((4, 2)), labels) == 0


def test_text_longer_than_the_context_is_refused(encoder, decoder):
    long = jnp.ones((1, 25), jnp.int32)
    parts = pretrained.encoder_parts(encoder.config, encoder.weights, 1)
    with pytest.raises(pretrained.PretrainedError, match=r"texts of 25 tokens.*context, 12"):
        parts.lower(parts.lower_weights, long)
    parts = pretrained.decoder_parts(decoder.config, decoder.weights, 1)
    with pytest.raises(pretrained.PretrainedError, match=r"texts of 25 tokens.*context, 24"):
        parts.lower(parts.lower_weights, long)
    with pytest.raises(pretrained.PretrainedError, match=r"texts of 30 tokens.*context, 24"):
        parts.generate(parts.lower_weights, parts.top_weights, long[:, :10], 20, 1)
    with pytest.raises(ValueError, match="generate: new_tokens=0 is not allowed"):
        parts.generate(parts.lower_weights, parts.top_weights, long[:, :10], 0, 1)


def test_weights_of_half_precision_compute_in_float32(decoder):
    half = jax.tree.map(lambda a: np.asarray(a, np.float16), decoder.weights)
    parts = pretrained.decoder_parts(decoder.config, half, 1)
    arrays = jax.tree.leaves((parts.lower_weights, parts.top_weights))
    assert {array.dtype.name for array in arrays} == {"float32"}


@pytest.mark.parametrize("adapt_layers", [-1, 4])
def test_more_top_layers_than_layers_are_refused(encoder, adapt_layers):
    with pytest.raises(pretrained.PretrainedError, match=rf"adapt_layers={adapt_layers}.*3 layers"):
        pretrained.encoder_parts(encoder.config, encoder.weights, adapt_layers)


def test_another_dtype_is_refused(encoder):
    with pytest.raises(pretrained.PretrainedError, match="dtype='float16' is not allowed"):
        pretrained.encoder_parts(encoder.config, encoder.weights, 1, "float16")
