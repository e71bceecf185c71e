"""Config and weights from a GGUF file, dequantised."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.models.pretrained.configs import DecoderConfig, config_from_gguf
from pflalign_jax.models.pretrained.errors import PretrainedError, optional_package
from pflalign_jax.models.pretrained.layout import GGUF_NAMES, assemble, decoder_entries


class GgufFile(NamedTuple):
    """An open GGUF file.

    Attributes:
      path: of the file.
      values: its metadata by key.
      tensors: its tensors by name, as `gguf.GGUFReader` has them.
    """

    path: pathlib.Path
    values: Mapping[str, Any]
    tensors: Mapping[str, Any]


def open_gguf(path: pathlib.Path) -> GgufFile:
    """Open a GGUF file; its tensors are read when they are used.

    Raises:
      PretrainedError: if the file is missing, truncated or damaged.
    """
    gguf = optional_package("gguf", str(path))
    if not path.is_file():
        raise PretrainedError(f"{path} is no file; give the path of a GGUF file")
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, OSError) as error:
        # The reader has no error of its own: it fails where the bytes end or make no sense.
        raise PretrainedError(
            f"{path} is no GGUF file, or is truncated or damaged ({error!r}); copy it again"
        ) from error
    return GgufFile(path, values, {tensor.name: tensor for tensor in reader.tensors})


def load_gguf(file: GgufFile) -> tuple[DecoderConfig, dict[str, Any]]:
    """Return config and weights; quantised tensors become float32 in memory.

    Raises:
      PretrainedError: as of `config_from_gguf` and `assemble`, and for a quantisation that the
        package gguf cannot undo.
    """
    gguf = optional_package("gguf", str(file.path))
    config = config_from_gguf(file.values, file.tensors, file.path)
    heads = {"attn_q": config.heads, "attn_k": config.key_value_heads}

    def read(name: str) -> np.ndarray:
        tensor = file.tensors[name]
        try:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise PretrainedError(
                f"{file.path}: tensor {name!r} is quantised as {tensor.tensor_type.name}, which "
                "the package gguf cannot undo; take the model in another quantisation"
            ) from error
        part = name.split(".")[-2]
        return _unpaired(values, heads[part]) if part in heads else values

    return config, assemble(decoder_entries(config, GGUF_NAMES), file.tensors, read, file.path)


def _unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a q or k matrix in the order for rotary embeddings of two halves.

    The format has the two features of a pair next to each other in each head; here, as in
    transformers, the first features of all pairs come first.
    """
    if len(rows) % (2 * heads):
        return rows  # of a wrong shape, which `assemble` refuses
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
