"""Tokenisers: text to rows of tokens of one length, and back."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pflalign_jax.models.pretrained.errors import PretrainedError, optional_package
from pflalign_jax.models.pretrained.gguf_file import GgufFile
from pflalign_jax.models.pretrained.safetensors_folder import read_json

_TYPES = _CONTROL, _USER_DEFINED = 3, 4
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


def tokenizer_of_gguf(
    file: GgufFile, context: int, pad_id: int | None, pad_token: str | None
) -> Tokenizer:
    """Return the tokeniser of a GGUF file, made from its vocabulary and merges.

    Args:
      file: the open file.
      context: the most tokens that the model takes.
      pad_id: of the file, None if it has none.
      pad_token: asked for by the user.

    Raises:
      PretrainedError: for another kind of tokeniser than byte-pair encoding after a split into
        single digits, for a vocabulary that does not fit its merges, or without padding token.
    """
    values = file.values
    kind = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise PretrainedError(
            f"{file.path}: its tokeniser is of kind {kind}; of GGUF files only "
            "('gpt2', 'smollm') is read. Use a folder of the model with tokenizer.json"
        )
    tokens, types = (values.get(f"tokenizer.ggml.{n}") or [] for n in ("tokens", "token_type"))
    if len(types) != len(tokens):
        raise PretrainedError(
            f"{file.path} has {len(tokens)} tokens and {len(types)} types of tokens; it is damaged"
        )
    inner = _byte_level_bpe(file.path, tokens, values.get("tokenizer.ggml.merges") or [])
    of_type = {
        kind: [t for t, k in zip(tokens, types, strict=True) if k == kind] for kind in _TYPES
    }
    inner.add_special_tokens(of_type[_CONTROL])
    inner.add_tokens(of_type[_USER_DEFINED])
    if values.get("tokenizer.ggml.add_bos_token"):
        start_id = values.get("tokenizer.ggml.bos_token_id", -1)
        if not 0 <= start_id < len(tokens):
            raise PretrainedError(
                f"{file.path}: tokenizer.ggml.bos_token_id is {start_id}, which is no token, but "
                "texts begin with it; the file is damaged"
            )
        processors = optional_package("tokenizers.processors", str(file.path))
        inner.post_processor = processors.TemplateProcessing(
            single=[tokens[start_id], "$A"], special_tokens=[(tokens[start_id], start_id)]
        )
    end_id = values.get("tokenizer.ggml.eos_token_id")
    return _tokenizer(inner, pad_id, end_id, context, file.path, pad_token)


def _byte_level_bpe(source: pathlib.Path, tokens: Sequence[str], merges: Sequence[str]) -> Any:
    """Return byte-pair encoding of bytes as printable letters, each digit a word of its own."""
    tokenizers = optional_package("tokenizers", str(source))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        model = tokenizers.models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges])
    except Exception as error:  # the package raises no narrower one
        raise PretrainedError(
            f"{source}: vocabulary and merges of its tokeniser do not fit ({error})"
        ) from error
    inner = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers
    inner.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


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
            f"{source} has no padding token; name one of its tokens, load(path, pad_token='...') "
            "or --config.model.pad_token=...: the end token, or one that no text has"
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
