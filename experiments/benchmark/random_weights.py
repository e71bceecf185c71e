"""Random weights of the architectures that packages ship, where these are not installed."""

import atexit
import functools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from pflalign_jax.models.pretrained import PretrainedError, find_packaged
from pflalign_jax.models.pretrained.configs import DecoderConfig, config_from_json
from pflalign_jax.models.pretrained.layout import DECODER_NAMES, decoder_entries, encoder_entries

CONFIGS: dict[str, dict[str, Any]] = {
    "all-MiniLM-L6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    },
    "SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
}
"""Sizes of each, as in its ``config.json``."""


@functools.cache
def packaged_or_random(name: str) -> str:
    """Return the name of a model that a package ships, or a folder of the same with random weights.

    Args:
      name: one of `CONFIGS`.
    """
    try:
        find_packaged(name)
        return name
    except PretrainedError:
        return random_folder(CONFIGS[name])


def random_folder(values: dict[str, Any]) -> str:
    """Return a folder with random weights, which is removed when the process ends.

    Args:
      values: of its ``config.json``.
    """
    folder = tempfile.TemporaryDirectory(prefix="random_weights_")
    atexit.register(folder.cleanup)
    write_random(pathlib.Path(folder.name), values)
    return folder.name


def write_random(folder: pathlib.Path, values: dict[str, Any]) -> None:
    """Write a folder with random weights of a ``config.json`` and a tokeniser of one token."""
    import safetensors.numpy
    import tokenizers

    config = config_from_json(values, folder)
    entries = (
        decoder_entries(config, DECODER_NAMES)
        if isinstance(config, DecoderConfig)
        else encoder_entries(config)
    )
    rng = np.random.default_rng(0)
    # Of the size that layers begin training with; norms multiply by one.
    tensors = {
        entry.name: np.ones(entry.shape, np.float32)
        if entry.path[-1] == "scale"
        else 0.02 * rng.standard_normal(entry.shape, np.float32)
        for entry in entries
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tokeniser = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0}, unk_token="[PAD]"))
    tokeniser.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "[PAD]"}), encoding="utf-8"
    )
