"""Which tensor of a file becomes which parameter, with its shape.

Files store a dense layer as ``[out, in]``; flax has kernels ``[in, out]``.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.models.pretrained.configs import DecoderConfig, EncoderConfig
from pflalign_jax.models.pretrained.errors import PretrainedError


class Entry(NamedTuple):
    """One parameter.

    Attributes:
      path: its keys in the tree of parameters.
      name: of the tensor in the file.
      shape: of the tensor in the file.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]


_ENCODER_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}

DECODER_NAMES = {
    "embedding": "embed_tokens.weight",
    "norm": "norm.weight",
    "output": "lm_head.weight",
    "layer": "layers",
    "attention_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
"""A decoder's tensors in transformers' files, without the prefix "model."."""

GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "output": "output.weight",
    "layer": "blk",
    "attention_norm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""A decoder's tensors in GGUF files."""


def encoder_entries(config: EncoderConfig) -> Iterator[Entry]:
    """Yield the parameters of an encoder, by transformers' names without the prefix "bert."."""
    width, inner = config.hidden, config.intermediate
    for part, rows in (
        ("word", config.vocabulary),
        ("position", config.context),
        ("token_type", config.token_types),
    ):
        name = f"embeddings.{part}_embeddings.weight"
        yield Entry(("embeddings", part, "embedding"), name, (rows, width))
    yield from _layer_norm(("embeddings", "norm"), "embeddings.LayerNorm", width)
    dense = {
        "query": ("attention.self.query", width, width),
        "key": ("attention.self.key", width, width),
        "value": ("attention.self.value", width, width),
        "attention_output": ("attention.output.dense", width, width),
        "intermediate": ("intermediate.dense", inner, width),
        "output": ("output.dense", width, inner),
    }
    for i in range(config.layers):
        layer, prefix = f"layer_{i}", f"encoder.layer.{i}"
        for part, (name, rows, columns) in dense.items():
            yield Entry((layer, part, "kernel"), f"{prefix}.{name}.weight", (rows, columns))
            yield Entry((layer, part, "bias"), f"{prefix}.{name}.bias", (rows,))
        for part, name in _ENCODER_NORMS.items():
            yield from _layer_norm((layer, part), f"{prefix}.{name}", width)


def _layer_norm(path: tuple[str, ...], name: str, width: int) -> Iterator[Entry]:
    yield Entry((*path, "scale"), f"{name}.weight", (width,))
    yield Entry((*path, "bias"), f"{name}.bias", (width,))


def decoder_entries(config: DecoderConfig, names: Mapping[str, str]) -> Iterator[Entry]:
    """Yield the parameters of a decoder; ``names`` is `DECODER_NAMES` or `GGUF_NAMES`."""
    width, inner = config.hidden, config.intermediate
    narrow = width // config.heads * config.key_value_heads
    table = (config.vocabulary, width)
    yield Entry(("embedding",), names["embedding"], table)
    yield Entry(("norm", "scale"), names["norm"], (width,))
    if not config.tied:
        yield Entry(("output",), names["output"], table)
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (width,),
        "q_proj": (width, width),
        "k_proj": (narrow, width),
        "v_proj": (narrow, width),
        "o_proj": (width, width),
        "mlp_norm": (width,),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    for i in range(config.layers):
        for part, shape in shapes.items():
            leaf = "kernel" if len(shape) == 2 else "scale"
            name = f"{names['layer']}.{i}.{names[part]}.weight"
            yield Entry((f"layer_{i}", part, leaf), name, shape)


def dense_modules(config: EncoderConfig | DecoderConfig) -> dict[str, str]:
    """Return transformers' names of a model's dense layers, by their paths here.

    They are those of a BertModel, such as ``"encoder.layer.5.attention.self.query"`` for
    ``"layer_5/query"``, and of a LlamaForCausalLM.
    """
    if isinstance(config, EncoderConfig):
        entries, prefix = encoder_entries(config), ""
    else:
        entries, prefix = decoder_entries(config, DECODER_NAMES), "model."
    return {
        "/".join(path[:-1]): prefix + name.removesuffix(".weight")
        for path, name, _ in entries
        if path[-1] == "kernel"
    }


def assemble(
    entries: Iterator[Entry],
    available: Collection[str],
    read: Callable[[str], np.ndarray],
    source: object,
) -> dict[str, Any]:
    """Return the tree of parameters, with views of what ``read`` returns.

    Args:
      entries: the parameters.
      available: names of the file's tensors.
      read: returns the tensor of a name.
      source: what errors call the file, its path.

    Raises:
      PretrainedError: for a tensor that is missing or has another shape than the config says.
    """
    tree: dict[str, Any] = {}
    for path, name, shape in entries:
        if name not in available:
            raise PretrainedError(
                f"{source} has no tensor {name!r}; the file is of another architecture, or its "
                "config has the wrong number of layers. It has "
                f"{len(available)} tensors, such as {sorted(available)[:3]}"
            )
        tensor = read(name)
        if tensor.shape != shape:
            raise PretrainedError(
                f"{source}: tensor {name!r} has shape {list(tensor.shape)}, but the config says "
                f"{list(shape)}; config and weights belong to different models"
            )
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = tensor.T if path[-1] == "kernel" else tensor
    return tree
