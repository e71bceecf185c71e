"""Tokenisers: text to rows of tokens of one length, and back."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pflalign_jax.models.pretrained.errors import PretrainedError, optional_package
from pflalign_jax.models.pretrained.gguf_file import GgufFile
from pflalign_jax.models.pretrained.safetensors_folder import read_json

_CONTROL, _USER_DEFINED = 3, 4
"""Types of tokens in GGUF files that are found in text as they are, before it is split."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The tokeniser of a pretrained model.

    Attributes:
      inner: a `tokenizers.Tokenizer`.
      pad_id: the token that fills up rows.
      end_id: the token that ends a text; None: there is none.
      context: the most tokens that the model takes.
      source: what errors call it, its path.
    """

    inner: Any
    pad_id: int
    end_id: int | None
    context: int
    source: str

    def encode(self, texts: Sequence[str], length: int, truncate: bool = True) -> np.ndarray:
        """Return tokens, int32 ``[N, length]``, filled up on the right with ``pad_id``.

        Args:
          texts: N texts. Special tokens written in them become these tokens.
          length: tokens per row, with those that the tokeniser adds.
          truncate: whether longer texts are cut at their end, not refused.

        Raises:
          PretrainedError: if ``length`` is longer than the model's context or too short for the
            tokens that are added; with ``truncate=False``, for a text that is longer.
        """
        if isinstance(texts, str):
            raise PretrainedError(f"texts is one string, {texts[:40]!r}; give a list of texts")
        added = self.inner.num_special_tokens_to_add(False)
        if not added < length <= self.context:
            raise PretrainedError(
                f"length={length} is not allowed: the model of {self.source} takes "
                f"{self.context} tokens, and {added} are added to each text; length must be "
                f"between {added + 1} and {self.context}"
            )
        if truncate:
            self.inner.enable_truncation(length)
        else:
            self.inner.no_truncation()
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for i, encoding in enumerate(self.inner.encode_batch(list(texts))):
            if len(encoding.ids) > length:
                raise PretrainedError(
                    f"text {i}, {texts[i][:40]!r}, has {len(encoding.ids)} tokens, more than "
                    f"length={length}; shorten it, or use truncate=True or a greater length, at "
                    f"most the model's context of {self.context}"
                )
            rows[i, : len(encoding.ids)] = encoding.ids
        return rows

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Return the N texts of tokens ``[N, L]``, without special tokens such as padding."""
        return list(self.inner.decode_batch(np.asarray(tokens).tolist(), skip_special_tokens=True))


def tokenizer_of_folder(
    folder: pathlib.Path, context: int, pad_id: int | None, pad_token: str | None
) -> Tokenizer:
    """Return the tokeniser of a folder's ``tokenizer.json``.

    The padding token is ``pad_token``, else that of ``tokenizer_config.json``, else ``pad_id``;
    the end token is that of ``tokenizer_config.json``, else that of ``config.json``.

    Args:
      folder: of the model.
      context: the most tokens that the model takes.
      pad_id: of ``config.json``, None if it has none.
      pad_token: asked for by the user.

    Raises:
      PretrainedError: if the file is missing or damaged, or there is no padding token.
    """
    tokenizers = optional_package("tokenizers", str(folder))
    file = folder / "tokenizer.json"
    read_json(file)  # its errors say more
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises no narrower one
        raise PretrainedError(
            f"{file} is no tokeniser of the package tokenizers ({error}); copy it again"
        ) from error
    optional = folder / "tokenizer_config.json"
    values = read_json(optional) if optional.is_file() else {}

    def named(key: str) -> int | None:
        token = values.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        return None if text is None else _id_of(inner, text, f"{optional}: {key}")

    end_id = named("eos_token")
    if end_id is None:
        ends = read_json(folder / "config.json").get("eos_token_id")
        end_id = ends[0] if isinstance(ends, list) else ends
    found = named("pad_token")
    return _tokenizer(inner, pad_id if found is None else found, end_id, context, file, pad_token)


def tokenizer_of_gguf(file: GgufFile, context: int, pad_token: str | None) -> Tokenizer:
    """Return the tokeniser of a GGUF file, made from its vocabulary and merges.

    Args:
      file: the open file.
      context: the most tokens that the model takes.
      pad_token: asked for by the user; None: that of the file.

    Raises:
      PretrainedError: for another kind of tokeniser than byte-pair encoding after a split into
        single digits, for a vocabulary that does not fit its merges, or without padding token.
    """
    tokenizers = optional_package("tokenizers", str(file.path))
    kind = file.values.get("tokenizer.ggml.model"), file.values.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise PretrainedError(
            f"{file.path}: its tokeniser is of kind {kind}; of GGUF files only "
            "('gpt2', 'smollm') is read. Use a folder of the model with tokenizer.json"
        )
    tokens = file.values.get("tokenizer.ggml.tokens") or []
    merges = [tuple(m.split(" ")) for m in file.values.get("tokenizer.ggml.merges") or []]
    try:
        inner = tokenizers.Tokenizer(
            tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
        )
    except Exception as error:  # the package raises no narrower one
        raise PretrainedError(
            f"{file.path}: vocabulary and merges of its tokeniser do not fit ({error})"
        ) from error
    split = tokenizers.pre_tokenizers
    inner.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    types = file.values.get("tokenizer.ggml.token_type") or []
    inner.add_special_tokens([t for t, kind in zip(tokens, types) if kind == _CONTROL])  # noqa: B905
    inner.add_tokens([t for t, kind in zip(tokens, types) if kind == _USER_DEFINED])  # noqa: B905
    if file.values.get("tokenizer.ggml.add_bos_token"):
        start = tokens[file.values["tokenizer.ggml.bos_token_id"]]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, inner.token_to_id(start))]
        )
    pad_id = file.values.get("tokenizer.ggml.padding_token_id")
    end_id = file.values.get("tokenizer.ggml.eos_token_id")
    return _tokenizer(inner, pad_id, end_id, context, file.path, pad_token)


def _tokenizer(
    inner: Any,
    pad_id: int | None,
    end_id: int | None,
    context: int,
    source: pathlib.Path,
    pad_token: str | None,
) -> Tokenizer:
    if pad_token is not None:
        pad_id = _id_of(inner, pad_token, "pad_token")
    if pad_id is None:
        raise PretrainedError(
            f"{source} has no padding token; name one of its tokens, "
            "load(path, pad_token='...'): the end token, or one that no text has"
        )
    # Some files pad or cut by themselves, to lengths that are not the caller's.
    inner.no_padding()
    inner.no_truncation()
    return Tokenizer(inner, pad_id, end_id, context, str(source))


def _id_of(inner: Any, token: str, what: str) -> int:
    found = inner.token_to_id(token)
    if found is None:
        raise PretrainedError(
            f"{what} is {token!r}, which is not in the tokeniser's vocabulary; name a token of it"
        )
    return int(found)
