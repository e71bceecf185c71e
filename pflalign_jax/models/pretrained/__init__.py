"""Pretrained language models: encoders of the BERT and decoders of the Llama family.

Weights come from files by `load`; `encoder_parts` and `decoder_parts` make functions of them.
"""

from pflalign_jax.models.pretrained.configs import DecoderConfig, EncoderConfig
from pflalign_jax.models.pretrained.decoder import DecoderParts, decoder_parts
from pflalign_jax.models.pretrained.encoder import EncoderParts, encoder_parts
from pflalign_jax.models.pretrained.errors import PretrainedError
from pflalign_jax.models.pretrained.generation import greedy
from pflalign_jax.models.pretrained.loading import (
    Pretrained,
    download,
    find_model,
    find_packaged,
    load,
    load_tokenizer,
)
from pflalign_jax.models.pretrained.peft_folder import load_adapter, save_adapter
from pflalign_jax.models.pretrained.tokenizer import Tokenizer
from pflalign_jax.models.pretrained.vocabulary_loss import token_losses, vocabulary_loss

__all__ = [
    "DecoderConfig",
    "DecoderParts",
    "EncoderConfig",
    "EncoderParts",
    "Pretrained",
    "PretrainedError",
    "Tokenizer",
    "decoder_parts",
    "download",
    "encoder_parts",
    "find_model",
    "find_packaged",
    "greedy",
    "load",
    "load_adapter",
    "load_tokenizer",
    "save_adapter",
    "token_losses",
    "vocabulary_loss",
]
