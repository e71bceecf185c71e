"""Configs whose data and pretrained model have tokens for padding, and tokenisers, of their own."""

import json

import pytest
import small_models

import pflalign_jax as pfl
from pflalign_jax import models
from pflalign_jax.datasets.loaders.instructions import load_instructions
from pflalign_jax.datasets.loaders.tokens import read_tokeniser
from pflalign_jax.models import language, pretrained
from pflalign_jax.runs import ConfigError, tokenisers
from pflalign_jax.runs.build import build_dataset
from pflalign_jax.runs.config import resolve

TEXTS = [["the cat sat on a mat", "cat"], ["a dog", "dog"]]


def without_padding(folder):
    """Take out of a folder of a model what says how it pads."""
    (folder / "tokenizer_config.json").unlink()
    file = folder / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"pad_token_id": None}))
    return str(folder)


@pytest.fixture
def config(tmp_path):
    """Return a config of intents, whose tokeniser is that of its model."""
    lists = {name: TEXTS * 5 for name in ("train", "val", "test")}
    (tmp_path / "data_full.json").write_text(json.dumps(lists))
    config = pfl.runs.default_config(model="pretrained_encoder")
    config.dataset.name, config.dataset.path = "clinc150", str(tmp_path)
    config.dataset.length, config.dataset.num_clients = 9, 2
    encoder = small_models.write_encoder(tmp_path / "encoder")
    config.dataset.tokenizer = config.model.path = str(encoder)
    return config


def test_a_model_without_a_token_for_padding_is_given_one(tmp_path):
    encoder = without_padding(small_models.write_encoder(tmp_path / "encoder"))
    decoder = without_padding(small_models.write_decoder(tmp_path / "decoder"))
    for make in (models.pretrained_encoder, models.pretrained_decoder):
        path = encoder if make is models.pretrained_encoder else decoder
        with pytest.raises(
            pretrained.PretrainedError, match=r"or --config\.model\.pad_token=\.\.\."
        ):
            make(2, path)
        with pytest.raises(pretrained.PretrainedError, match="pad_token is 'none', which is not"):
            make(2, path, pad_token="none")
    models.pretrained_encoder(2, encoder, pad_token="dog")
    parts, _ = language._encoder(encoder, 2, "float32", "dog")
    assert parts.config.pad_id == small_models.WORDS.index("dog")
    models.pretrained_decoder(9, decoder, pad_token="<|end|>")
    parts, _ = language._decoder(decoder, 2, "float32", "<|end|>")
    assert parts.config.pad_id == 1


def test_data_and_model_pad_with_one_token(config):
    build_dataset(resolve(config))
    config.dataset.pad_token = "dog"
    with pytest.raises(ConfigError, match=r"with token 11, 'dog', and .* is token 0, '\[PAD\]'"):
        build_dataset(resolve(config))
    config.model.pad_token = "dog"
    assert (build_dataset(resolve(config)).x[:, -1] == 11).all()


def test_data_in_tokens_of_another_model_are_refused(config, tmp_path, monkeypatch):
    other = small_models.write_encoder(tmp_path / "other")
    config.dataset.tokenizer = str(other)
    build_dataset(resolve(config))  # a copy of the model's
    file = other / "tokenizer.json"
    text = file.read_text(encoding="utf8").replace('"dog"', '"cow"')  # as large as before
    file.write_text(text, encoding="utf8")
    with pytest.raises(
        ConfigError, match=r"2 tokens differ, such as 'cow', number 11 there and mis"
    ):
        build_dataset(resolve(config))
    config.model.name, config.model.path = (
        "pretrained_decoder",
        str(small_models.write_decoder(tmp_path / "decoder")),
    )
    with pytest.raises(ConfigError, match=r"another vocabulary than the model of .*decoder"):
        build_dataset(resolve(config))
    # That of one path is not read a second time.
    monkeypatch.setattr(tokenisers, "read_tokeniser", lambda path: 1 / 0)
    fields = {"name": "instructions", "tokenizer": config.model.path}
    tokenisers.check_tokenisers(fields, config.model)


def test_instructions_with_a_gguf_file_without_a_token_for_padding(tmp_path):
    leave_out = ["tokenizer.ggml.padding_token_id"]
    path = small_models.write_gguf(tmp_path / "small.gguf", leave_out=leave_out)
    assert read_tokeniser(path).pad is None
    row = {"instruction": "the", "input": "", "output": "cat", "task": "a"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    examples = load_instructions(str(tmp_path / "tasks.jsonl"), path, 9, "{instruction}:")
    assert examples.x[0, -1] == 0
