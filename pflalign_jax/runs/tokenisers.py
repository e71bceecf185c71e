"""Whether texts of a config are encoded in the way in which its pretrained model reads them."""

from collections.abc import Mapping
from typing import Any

from pflalign_jax import datasets
from pflalign_jax.datasets.loaders.tokens import Tokeniser, read_tokeniser
from pflalign_jax.runs.config_checks import ConfigError

ENCODER, DECODER = "pretrained_encoder", "pretrained_decoder"


def check_tokenisers(dataset: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse texts in tokens that mean something else to the model.

    Vocabularies are compared, and of an encoder the tokens for padding, which it would take for
    text; a decoder sees earlier tokens only, so that padding on the right is nothing to it. Only
    the package's own datasets and models are looked at.

    Args:
      dataset, model: sections of a resolved config.

    Raises:
      ConfigError: naming a token that differs.
      DatasetError, PretrainedError: for a tokeniser that cannot be read.
    """
    tokenizer, path = dataset.get("tokenizer"), model.get("path")
    if dataset["name"] not in datasets.NAMES or model["name"] not in (ENCODER, DECODER):
        return
    if tokenizer is None or path is None:
        return
    # Here, as other runs do not pay for flax.
    from pflalign_jax.models.pretrained import find_model, load_tokenizer

    same = find_model(tokenizer) == find_model(path)
    if same and model["name"] == DECODER:
        return  # that of a GGUF file takes seconds to read
    of_data = read_tokeniser(tokenizer)
    of_model = load_tokenizer(find_model(path), model.get("pad_token"))
    if not same:
        _check_vocabularies(of_data, of_model, tokenizer, path)
    if model["name"] == ENCODER:
        _check_padding(of_data, of_model, dataset, path)


def _check_vocabularies(of_data: Tokeniser, of_model: Any, tokenizer: str, path: str) -> None:
    """Compare which number each token has; ``of_model`` is a `pretrained.Tokenizer`."""
    data = of_data.tokenizer.get_vocab(with_added_tokens=True)
    model = of_model.inner.get_vocab(with_added_tokens=True)
    if data != model:
        tokens = data.keys() | model.keys()
        others = sorted(token for token in tokens if data.get(token) != model.get(token))
        numbers = [
            "missing" if number is None else f"number {number}"
            for number in (data.get(others[0]), model.get(others[0]))
        ]
        raise ConfigError(
            f"config.dataset.tokenizer={tokenizer!r} has another vocabulary than the model of "
            f"{path}: {len(others)} tokens differ, such as {others[0]!r}, {numbers[0]} there and "
            f"{numbers[1]} in the model. Set config.dataset.tokenizer to the model's path"
        )


def _check_padding(
    of_data: Tokeniser, of_model: Any, dataset: Mapping[str, Any], path: str
) -> None:
    """Compare the tokens for padding likewise."""
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
