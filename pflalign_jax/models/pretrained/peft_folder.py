"""One client's adapters as a folder of Hugging Face's PEFT, and read from one.

Such a folder has ``adapter_config.json`` and ``adapter_model.safetensors``. PEFT has no place for
a head behind the mean of hidden states, so that one is a file of its own, ``head.safetensors``,
with ``weight`` ``[num_classes, D]`` and ``bias`` as of PyTorch's ``Linear``; PEFT leaves it alone.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pflalign_jax.models.base import Adapters, Model
from pflalign_jax.models.lora import ADAPTERS
from pflalign_jax.models.pretrained.errors import PretrainedError, optional_package
from pflalign_jax.models.pretrained.safetensors_folder import map_tensors, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
_PREFIX = "base_model.model."
_WRITTEN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "modules_to_save": None}
_PLAIN = {
    **_WRITTEN,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Fields of PEFT that have no other value here; early versions do not know all of them."""


def save_adapter(
    folder: str | os.PathLike[str], model: Model, params: Mapping[str, Any]
) -> pathlib.Path:
    """Write adapters, and the head if there is one, as a folder that PEFT loads.

    An encoder's adapters are for transformers' BertModel, a decoder's for its LlamaForCausalLM:
    ``PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)``.

    Args:
      folder: is made where it is missing; what a folder of an adapter has is written over.
      model: from `pflalign_jax.models.pretrained_encoder` or ``pretrained_decoder``.
      params: of one client.

    Returns:
      The folder.

    Raises:
      PretrainedError: for another model, or parameters that it has not.
    """
    save_file = optional_package("safetensors.numpy", "save_adapter").save_file
    about, place = _adapters_of("save_adapter", model), pathlib.Path(folder)
    _check_params("save_adapter", model, params)
    tensors = {}
    for path, adapter in params[ADAPTERS].items():
        for name, key in zip(("a", "b"), _keys(about, path), strict=True):
            tensors[key] = _transposed(adapter[name])
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
    (place / HEAD).unlink(missing_ok=True)
    for name in model.head:
        head = params[name]
        tensors = {"weight": _transposed(head["kernel"]), "bias": np.array(head["bias"])}
        save_file(tensors, place / HEAD, metadata={"format": "pt"})
    whole = float(about.alpha).is_integer()
    fields = {
        **_WRITTEN,
        "task_type": about.task,
        "base_model_name_or_path": about.base,
        "r": about.rank,
        "lora_alpha": int(about.alpha) if whole else about.alpha,
        "lora_dropout": about.dropout,
        # Whole names, which fit no other layer.
        "target_modules": sorted(about.modules[path] for path in params[ADAPTERS]),
        "inference_mode": True,
    }
    (place / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return place


def load_adapter(
    folder: str | os.PathLike[str],
    model: Model,
    params: Mapping[str, Any],
    any_base: bool = False,
) -> dict[str, Any]:
    """Return parameters with the adapters of a folder of PEFT, and with its head if it has one.

    Args:
      folder: as `save_adapter` or PEFT writes it.
      model: from `pflalign_jax.models.pretrained_encoder` or ``pretrained_decoder``.
      params: of this model, e.g. its first ones; where the folder has no head, theirs stays.
      any_base: False refuses a folder that names another pretrained model than ``model``'s; what
        counts is the last part of the name or path.

    Raises:
      PretrainedError: for a file that is missing, truncated or damaged; for an adapter of another
        rank, scale, kind, model or other layers than ``model``.
    """
    about, place = _adapters_of("load_adapter", model), pathlib.Path(folder)
    _check_params("load_adapter", model, params)
    _check_present(place)
    _check_config(read_json(place / CONFIG), about, place / CONFIG, any_base)
    tensors = _tensors(place / WEIGHTS)
    # Of a model with a head for some task, the bare model has a name.
    tensors = {name.replace(f"{_PREFIX}bert.", _PREFIX, 1): t for name, t in tensors.items()}
    expected = {key for path in params[ADAPTERS] for key in _keys(about, path)}
    if tensors.keys() != expected:
        raise PretrainedError(
            f"{place / WEIGHTS} has adapters of other layers than the model: "
            f"{_some(tensors.keys() - expected)} that the model lacks, and it lacks "
            f"{_some(expected - tensors.keys())}. Build the model with the targets and "
            "adapt_layers of the adapter"
        )
    adapters = {
        path: {
            name: _read(tensors, key, adapter[name].shape, place / WEIGHTS)
            for name, key in zip(("a", "b"), _keys(about, path), strict=True)
        }
        for path, adapter in params[ADAPTERS].items()
    }
    loaded = {**params, ADAPTERS: adapters}
    if model.head and (place / HEAD).exists():
        tensors = _tensors(place / HEAD)
        (name,) = model.head
        loaded[name] = {
            "kernel": _read(tensors, "weight", params[name]["kernel"].shape, place / HEAD),
            "bias": _read(tensors, "bias", params[name]["bias"].shape, place / HEAD),
        }
    return loaded


def _adapters_of(function: str, model: Model) -> Adapters:
    if model.adapters is None or not model.adapters.modules:
        raise PretrainedError(
            f"{function}: the model has no adapters that PEFT has names for; use "
            "pretrained_encoder or pretrained_decoder with rank >= 1"
        )
    return model.adapters


def _check_params(function: str, model: Model, params: Mapping[str, Any]) -> None:
    """Refuse parameters that are not adapters and head, as of methods with models of their own."""
    expected = {ADAPTERS, *model.head}
    if not isinstance(params, Mapping) or set(params) != expected:
        kind = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise PretrainedError(
            f"{function}: params are {kind}, and those of this model are {sorted(expected)}; the "
            "method has a model of its own kind, which PEFT cannot hold"
        )
    for path, adapter in params[ADAPTERS].items():
        if set(adapter) != {"a", "b"}:
            raise PretrainedError(
                f"{function}: adapter {path!r} has {sorted(adapter)}, and PEFT holds a and b only; "
                "pflalign_jax.models.merge returns the weights of the whole model"
            )


def _keys(about: Adapters, path: str) -> tuple[str, str]:
    """Return what PEFT calls A and B of a layer."""
    module = _PREFIX + about.modules[path]
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _check_config(
    fields: Mapping[str, Any], about: Adapters, file: pathlib.Path, any_base: bool
) -> None:
    expected = {"r": about.rank, "lora_alpha": about.alpha, **_PLAIN}
    for name, value in expected.items():
        found = fields.get(name, None if name in ("r", "lora_alpha") else value)
        # PEFT writes None or an empty list where nothing is set.
        if found != value and (found or value):
            what = "build the model with rank and alpha of the adapter"
            if name in _PLAIN:
                what = "such adapters compute something else than those of this library"
            raise PretrainedError(f"{file}: {name} is {found!r}, not {value!r}; {what}")
    base = fields.get("base_model_name_or_path")
    if any_base or base is None or about.base is None:
        return
    if pathlib.PurePath(base).name != pathlib.PurePath(about.base).name:
        raise PretrainedError(
            f"{file}: base_model_name_or_path is {base!r}, and the model is {about.base!r}; give "
            "the adapter's own model, or any_base=True if they are the same"
        )


def _check_present(folder: pathlib.Path) -> None:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PretrainedError(
                f"{folder} has no {name}; a folder of PEFT has {CONFIG} and {WEIGHTS} (files of "
                "pickle, adapter_model.bin, are not read, as they can run code)"
            )


def _tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file, all of them floats."""
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in map_tensors(file).items():
        if not isinstance(tensor, np.ndarray):
            raise PretrainedError(f"{file}: tensor {name!r} has dtype {tensor}, which is no float")
        tensors[name] = tensor
    return tensors


def _read(
    tensors: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...], file: pathlib.Path
) -> jnp.ndarray:
    """Return a tensor in the shape of a parameter, of matrices the transposed one."""
    if key not in tensors:
        raise PretrainedError(f"{file} has no tensor {key!r}, but {_some(tensors.keys())}")
    found = tensors[key].T
    if found.shape != shape:
        raise PretrainedError(
            f"{file}: tensor {key!r} has shape {list(found.T.shape)}, and the model needs "
            f"{list(shape[::-1])}; the adapter is of another rank or another model"
        )
    return jnp.asarray(found, jnp.float32)


def _transposed(array: Any) -> np.ndarray:
    """Return a kernel ``[in, out]`` as files have it."""
    return np.ascontiguousarray(np.asarray(array).T)


def _some(names: Any) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "") or "nothing"
