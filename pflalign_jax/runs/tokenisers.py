"""Whether texts of a config are encoded in the way in which its pretrained model reads them."""

from collections.abc import Mapping
from typing import Any

from pflalign_jax import datasets
from pflalign_jax.datasets.loaders.tokens import Tokeniser, read_tokeniser
from pflalign_jax.runs.config_checks import ConfigError

ENCODER = "pretrained_encoder"


def check_tokenisers(dataset: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse texts whose padding an encoder would take for text.

    Only the package's own datasets and models are looked at. A decoder sees earlier tokens only:
    padding on the right is nothing to it.

    Args:
      dataset, model: sections of a resolved config.

    Raises:
      ConfigError: naming both tokens.
      DatasetError, PretrainedError: for a tokeniser that cannot be read.
    """
    tokenizer, path = dataset.get("tokenizer"), model.get("path")
    if dataset["name"] not in datasets.NAMES or model["name"] != ENCODER:
        return
    if tokenizer is None or path is None:
        return
    # Here, as other runs do not pay for flax.
    from pflalign_jax.models.pretrained import find_model, load_tokenizer

    of_data = read_tokeniser(tokenizer)
    of_model = load_tokenizer(find_model(path), model.get("pad_token"))
    _check_padding(of_data, of_model, dataset, path)


def _check_padding(
    of_data: Tokeniser, of_model: Any, dataset: Mapping[str, Any], path: str
) -> None:
    """Compare the tokens for padding; ``of_model`` is a `pretrained.Tokenizer`."""
    if "pad_token" not in dataset:
        return
    pad, expected = of_data.pad_token(dataset["pad_token"]), of_model.pad_id
    if pad != expected:
        raise ConfigError(
            f"config.dataset.pad_token={dataset['pad_token']!r} fills texts up with token {pad}, "
            f"{of_data.tokenizer.id_to_token(pad)!r}, and for the model of {path} padding is "
            f"token {expected}, {of_model.inner.id_to_token(expected)!r}: it would take padding "
            "for text. Set config.dataset.pad_token or config.model.pad_token to the same token"
        )
