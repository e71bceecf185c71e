"""Sizes of the two architectures, read from a ``config.json`` or the metadata of a GGUF file."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from pflalign_jax.models.pretrained.errors import PretrainedError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """An encoder of the BERT family.

    Attributes:
      hidden: width D of the hidden states.
      layers: number of layers.
      heads: number of attention heads; it divides ``hidden``.
      intermediate: width of the hidden layer of the network in each layer.
      vocabulary: number V of tokens.
      context: number of positions, the most tokens that a text may have.
      token_types: number of token types; only type 0 is used.
      norm_eps: what is added to the variance in layer norms.
      pad_id: the token that fills up texts on the right; None: no text is filled up.

    References:
      Devlin et al., "BERT", arXiv:1810.04805. Wang et al., "MiniLM", arXiv:2002.10957.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    context: int
    token_types: int = 2
    norm_eps: float = 1e-12
    pad_id: int | None = 0

    def __post_init__(self) -> None:
        _check_divides("heads", self.heads, "hidden", self.hidden)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder of the Llama family.

    Attributes:
      hidden: width D of the hidden states.
      layers: number of layers.
      heads: number of attention heads of queries; it divides ``hidden``.
      key_value_heads: number of heads of keys and values; it divides ``heads``.
      intermediate: width of the hidden layer of the network in each layer.
      vocabulary: number V of tokens.
      context: the most tokens that a text may have.
      rope_theta: base of the rotary embeddings' wavelengths, in positions.
      norm_eps: what is added to the mean square in RMS norms.
      tied: whether the embedding of tokens is that of the output, too.
      pad_id: the token that fills up texts on the right; None: no text is filled up.

    References:
      Touvron et al., "LLaMA", arXiv:2302.13971. Ainslie et al., grouped-query attention,
      arXiv:2305.13245. Su et al., rotary embeddings, arXiv:2104.09864.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True
    pad_id: int | None = None

    def __post_init__(self) -> None:
        _check_divides("heads", self.heads, "hidden", self.hidden)
        _check_divides("key_value_heads", self.key_value_heads, "heads", self.heads)
        if self.hidden // self.heads % 2:
            raise PretrainedError(
                f"hidden={self.hidden} and heads={self.heads} give heads of odd width "
                f"{self.hidden // self.heads}; rotary embeddings turn pairs, so it must be even"
            )


def _check_divides(name: str, value: int, of: str, whole: int) -> None:
    if value < 1 or whole < 1 or whole % value:
        raise PretrainedError(f"{name}={value} does not divide {of}={whole}")


def config_from_json(values: Mapping[str, Any], source: object) -> EncoderConfig | DecoderConfig:
    """Return the sizes in a ``config.json`` of Hugging Face's transformers.

    Args:
      values: the file's content.
      source: what errors call it, the file's path.

    Raises:
      PretrainedError: for an architecture other than BERT's or Llama's, a variant of them that
        computes something else, or a size that is missing or no number.
    """
    kind = values.get("model_type")
    if kind == "bert":
        return _encoder_config(values, source)
    if kind == "llama":
        return _decoder_config(values, source)
    raise PretrainedError(
        f"{source}: model_type is {kind!r}; this library has the architectures 'bert' (encoder) "
        "and 'llama' (decoder). Use a model of one of these"
    )


def _encoder_config(values: Mapping[str, Any], source: object) -> EncoderConfig:
    _refuse_variants(
        values, source, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False
    )
    return EncoderConfig(
        hidden=_size(values, "hidden_size", source),
        layers=_size(values, "num_hidden_layers", source),
        heads=_size(values, "num_attention_heads", source),
        intermediate=_size(values, "intermediate_size", source),
        vocabulary=_size(values, "vocab_size", source),
        context=_size(values, "max_position_embeddings", source),
        token_types=_size(values, "type_vocab_size", source, 2),
        norm_eps=_number(values, "layer_norm_eps", source, 1e-12),
        pad_id=_token(values, "pad_token_id", source),
    )


def _decoder_config(values: Mapping[str, Any], source: object) -> DecoderConfig:
    _refuse_variants(values, source, hidden_act="silu", attention_bias=False, mlp_bias=False)
    # Where the base stands depends on the version of transformers that wrote the file.
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _refuse_variants({"rope_type": kind}, source, rope_type="default")
    hidden = _size(values, "hidden_size", source)
    heads = _size(values, "num_attention_heads", source)
    _refuse_variants({"head_dim": values.get("head_dim")}, source, head_dim=hidden // heads)
    return DecoderConfig(
        hidden=hidden,
        layers=_size(values, "num_hidden_layers", source),
        heads=heads,
        key_value_heads=_size(values, "num_key_value_heads", source, heads),
        intermediate=_size(values, "intermediate_size", source),
        vocabulary=_size(values, "vocab_size", source),
        context=_size(values, "max_position_embeddings", source),
        rope_theta=_number({**rope, **values}, "rope_theta", source, 10000.0),
        norm_eps=_number(values, "rms_norm_eps", source, 1e-6),
        tied=bool(values.get("tie_word_embeddings", False)),
        pad_id=_token(values, "pad_token_id", source),
    )


def config_from_gguf(
    values: Mapping[str, Any], tensors: Collection[str], source: object
) -> DecoderConfig:
    """Return the sizes in the metadata of a GGUF file.

    Args:
      values: the metadata by key.
      tensors: names of the file's tensors; without "output.weight" the embedding is tied.
      source: what errors call it, the file's path.

    Raises:
      PretrainedError: as of `config_from_json`.
    """
    kind = values.get("general.architecture")
    if kind != "llama":
        raise PretrainedError(
            f"{source}: general.architecture is {kind!r}; of GGUF files this library reads the "
            "architecture 'llama' (decoder). Use a model of that one"
        )
    if "rope_freqs.weight" in tensors:
        values = {**values, "llama.rope.scaling.type": "by rope_freqs.weight"}
    hidden = _size(values, "llama.embedding_length", source)
    heads = _size(values, "llama.attention.head_count", source)
    plain = {"llama.rope.dimension_count": hidden // heads, "llama.rope.scaling.type": "none"}
    _refuse_variants(values, source, **plain)
    tokens = values.get("tokenizer.ggml.tokens", ())
    return DecoderConfig(
        hidden=hidden,
        layers=_size(values, "llama.block_count", source),
        heads=heads,
        key_value_heads=_size(values, "llama.attention.head_count_kv", source, heads),
        intermediate=_size(values, "llama.feed_forward_length", source),
        vocabulary=_size(values, "llama.vocab_size", source, len(tokens) or None),
        context=_size(values, "llama.context_length", source),
        rope_theta=_number(values, "llama.rope.freq_base", source, 10000.0),
        norm_eps=_number(values, "llama.attention.layer_norm_rms_epsilon", source, 1e-5),
        tied="output.weight" not in tensors,
        pad_id=_token(values, "tokenizer.ggml.padding_token_id", source),
    )


def _refuse_variants(values: Mapping[str, Any], source: object, **allowed: Any) -> None:
    """Refuse a field with another value than the one that is built here; None is that one."""
    for name, value in allowed.items():
        if values.get(name) is not None and values[name] != value:
            raise PretrainedError(
                f"{source}: {name} is {values[name]!r}; only {value!r} is built here. Use a model "
                "of the plain architecture"
            )


def _size(values: Mapping[str, Any], name: str, source: object, default: int | None = None) -> int:
    """Return a field that is a whole number of at least 1."""
    value = values.get(name, default)
    if value is None and default is not None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PretrainedError(
            f"{source}: {name} is {value!r}; it must be a whole number >= 1. The file is damaged, "
            "or of another architecture"
        )
    return value


def _number(values: Mapping[str, Any], name: str, source: object, default: float) -> float:
    """Return a field that is a positive number."""
    value = values.get(name, default)
    if not isinstance(value, int | float) or not value > 0:
        raise PretrainedError(
            f"{source}: {name} is {value!r}; it must be a positive number. The file is damaged"
        )
    return float(value)


def _token(values: Mapping[str, Any], name: str, source: object) -> int | None:
    """Return a field that is a token; None if it is absent, or -1 as some files have it."""
    value = values.get(name)
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or value < 0:
        raise PretrainedError(f"{source}: {name} is {value!r}; it must be a token's number")
    return value
