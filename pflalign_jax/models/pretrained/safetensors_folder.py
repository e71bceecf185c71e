"""Config and weights from a folder as `save_pretrained` of transformers writes it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pflalign_jax.models.pretrained.configs import (
    DecoderConfig,
    EncoderConfig,
    config_from_json,
)
from pflalign_jax.models.pretrained.errors import PretrainedError, optional_package
from pflalign_jax.models.pretrained.layout import (
    DECODER_NAMES,
    assemble,
    decoder_entries,
    encoder_entries,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      PretrainedError: if the file is missing or has no JSON object.
    """
    if not file.is_file():
        raise PretrainedError(
            f"{file.parent} has no {file.name}; a folder of a pretrained model has config.json, "
            f"{WEIGHTS} and tokenizer.json"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PretrainedError(f"{file} is no JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise PretrainedError(f"{file} has a {type(values).__name__}, not an object of fields")
    return values


def load_folder(
    folder: pathlib.Path,
) -> tuple[EncoderConfig | DecoderConfig, dict[str, Any]]:
    """Return config and weights; the arrays are maps of the file, of the dtypes stored in it.

    Raises:
      PretrainedError: for a missing or truncated file, and as of `config_from_json` and
        `assemble`.
    """
    config = config_from_json(read_json(folder / "config.json"), folder / "config.json")
    file = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    if not file.is_file():
        raise PretrainedError(
            f"{folder} has no {WEIGHTS}, and no {INDEX} of several files. Files of pickle such as "
            "pytorch_model.bin are not read, because they can run code: save the model with "
            "save_pretrained(folder) of transformers"
        )
    tensors = map_tensors(file) if file.name == WEIGHTS else _map_shards(file)
    encoder = isinstance(config, EncoderConfig)
    # Models with a head for some task have the bare model under a name.
    prefix = "bert." if encoder else "model."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    entries = (
        encoder_entries(config)
        if isinstance(config, EncoderConfig)
        else decoder_entries(config, DECODER_NAMES)
    )

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        if not isinstance(tensor, np.ndarray):
            raise PretrainedError(
                f"{file}: tensor {name!r} has dtype {tensor}; known are {', '.join(_DTYPES)}. "
                "Save the model without quantisation"
            )
        return tensor

    return config, assemble(entries, tensors, read, file)


def _map_shards(index: pathlib.Path) -> Mapping[str, np.ndarray | str]:
    """Return the tensors of a model in several files, by the index that names the file of each.

    Raises:
      PretrainedError: for an index without such names, and for files that are missing, damaged or
        without a tensor that is to be there.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise PretrainedError(f"{index} has no weight_map from tensors to files; copy it again")
    for name, shard in places.items():
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise PretrainedError(
                f"{index}: tensor {name!r} is in {shard!r}; it must be the name of a file next to "
                "the index"
            )
    tensors: dict[str, np.ndarray | str] = {}
    for shard in sorted(set(places.values())):
        file = index.with_name(shard)
        if not file.is_file():
            raise PretrainedError(f"{index} names {shard}, which is not there; copy it, too")
        found = map_tensors(file)
        missing = sorted(name for name in places if places[name] == shard and name not in found)
        if missing:
            raise PretrainedError(
                f"{file} has no tensor {missing[0]!r}, which {index.name} says is there; the files "
                "are not of one model"
            )
        tensors |= found
    return tensors


def map_tensors(file: pathlib.Path) -> Mapping[str, np.ndarray | str]:
    """Return the tensors of a safetensors file by name, read when they are used.

    One of a dtype that is no float is only named: its value is the name of its dtype.

    Raises:
      PretrainedError: if the file is truncated or damaged.
    """
    safetensors = optional_package("safetensors", str(file))
    try:
        # It checks the header, and that the file has all that the header lists.
        safetensors.safe_open(str(file), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise PretrainedError(f"{file} is truncated or damaged ({error}); copy it again") from error
    with file.open("rb") as source:
        header_bytes = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(header_bytes))
    header.pop("__metadata__", None)
    data = np.memmap(file, mode="r", offset=8 + header_bytes)
    tensors: dict[str, np.ndarray | str] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = _DTYPES.get(entry["dtype"])
        tensors[name] = (
            entry["dtype"]
            if dtype is None
            else data[begin:end].view(jnp.dtype(dtype)).reshape(entry["shape"])
        )
    return tensors
