"""The real weights, where `make models` installed them, against stored outputs of transformers."""

import pathlib

import jax
import jax.numpy as jnp
import make_reference
import numpy as np
import pytest

from pflalign_jax.models import pretrained

REFERENCE = dict(np.load(pathlib.Path(__file__).with_name("reference.npz")))


def installed(name):
    """Return the path of a model, or skip with how to get it."""
    try:
        return pretrained.find_packaged(name)
    except pretrained.PretrainedError as error:
        pytest.skip(str(error))


def test_minilm_is_that_of_transformers():
    model = pretrained.load(installed("all-MiniLM-L6-v2"))
    tokens = model.tokenizer.encode(make_reference.TEXTS, 16)
    np.testing.assert_array_equal(tokens, REFERENCE["minilm_tokens"])
    parts = pretrained.encoder_parts(model.config, model.weights, 2)
    hidden = jax.jit(parts.lower)(parts.lower_weights, tokens)
    pooled = jax.jit(parts.top)(parts.top_weights, hidden, parts.mask(jnp.asarray(tokens)))
    np.testing.assert_allclose(pooled, REFERENCE["minilm_pooled"], atol=1e-4)
    whole = pretrained.encoder_parts(model.config, model.weights, 0)
    hidden = jax.jit(whole.lower)(whole.lower_weights, tokens)[:, ::5]
    real = (tokens != model.tokenizer.pad_id)[:, ::5]
    np.testing.assert_allclose(hidden[real], REFERENCE["minilm_hidden"][real], atol=1e-4)


def some_logits(parts):
    """Return ``(lower, top, tokens) -> logits`` of every so-manieth token, as they are stored."""

    @jax.jit
    def logits(lower, top, tokens):
        hidden = parts.top(top, parts.lower(lower, tokens), parts.mask(tokens))
        return hidden @ parts.vocabulary(lower)[:: make_reference.EVERY].T

    return logits


def test_logits_of_smollm2_for_a_short_prompt():
    """Logits that transformers gave for the same file, float32 on a CPU.

    ``make_reference.py`` next to this file wrote them into ``reference.npz``, by `smollm2` there;
    its docstring has the command.
    """
    model = pretrained.load(installed("SmolLM2-135M-Instruct"))
    expected = REFERENCE["smollm2_tokens_0"]
    tokens = model.tokenizer.encode(make_reference.PROMPTS[:1], len(expected))
    np.testing.assert_array_equal(tokens[0], expected)
    parts = pretrained.decoder_parts(model.config, model.weights, 0)
    found = some_logits(parts)(parts.lower_weights, parts.top_weights, tokens)
    np.testing.assert_allclose(found[0], REFERENCE["smollm2_logits_0"], atol=1e-3)


@pytest.mark.slow  # above for one prompt, without generation
def test_smollm2_is_that_of_transformers():
    model = pretrained.load(installed("SmolLM2-135M-Instruct"))
    lengths = [REFERENCE[f"smollm2_tokens_{i}"].size for i in range(2)]
    tokens = model.tokenizer.encode(make_reference.PROMPTS, max(lengths))
    parts = pretrained.decoder_parts(model.config, model.weights, 1)
    weights = jax.device_put((parts.lower_weights, parts.top_weights))
    found = some_logits(parts)(*weights, tokens)
    for i, length in enumerate(lengths):
        np.testing.assert_array_equal(tokens[i, :length], REFERENCE[f"smollm2_tokens_{i}"])
        np.testing.assert_allclose(found[i, :length], REFERENCE[f"smollm2_logits_{i}"], atol=1e-3)
    generate = jax.jit(parts.generate, static_argnames="new_tokens")
    answers = generate(*weights, tokens, new_tokens=8, end_id=model.tokenizer.end_id)
    for i in range(2):
        np.testing.assert_array_equal(answers[i], REFERENCE[f"smollm2_answer_{i}"])
    assert model.tokenizer.decode(answers)[0].startswith(" Paris.")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of peft
@pytest.mark.parametrize(
    "make", ["small_encoder", "small_decoder", "small_adapters", "minilm", "smollm2"]
)
def test_the_stored_outputs_are_those_of_the_installed_transformers(make, monkeypatch):
    pytest.importorskip("peft", reason="pip install 'pflalign-jax[lm-reference]'")
    for name in {"minilm": ["all-MiniLM-L6-v2"], "smollm2": ["SmolLM2-135M-Instruct"]}.get(
        make, []
    ):
        installed(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, values in getattr(make_reference, make)().items():
        np.testing.assert_allclose(values, REFERENCE[name], atol=1e-3, err_msg=name)
