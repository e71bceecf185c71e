"""From texts to tokens, by the tokeniser of a pretrained model."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.loaders.chat import Chat, chat_of_folder, chat_of_gguf

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>")
"""What the token for padding is usually called; a tokeniser's own setting comes first."""


class Tokeniser(NamedTuple):
    """A tokeniser that neither pads nor cuts by itself.

    Attributes:
      file: for messages.
      tokenizer: of the package ``tokenizers``.
      vocabulary: its largest token + 1.
      pad: the token for padding; None: it has none.
      end: the token that ends a text; None: it is not known.
      chat: its chat template.
    """

    file: pathlib.Path
    tokenizer: Any
    vocabulary: int
    pad: int | None
    end: int | None
    chat: Chat

    def token(self, text: str, argument: str) -> int:
        """Return the number of a token; raise an error naming the argument if there is none."""
        number = self.tokenizer.token_to_id(text)
        if number is None:
            raise DatasetError(
                f"{argument}={text!r} is no token of {self.file}; name one that is, as token 0, "
                f"{self.tokenizer.id_to_token(0)!r}"
            )
        return int(number)

    def pad_token(self, text: str | None) -> int:
        """Return the token for padding: that with this text, or the tokeniser's own.

        Raises:
          DatasetError: if no text is given and the tokeniser has none.
        """
        if text is not None:
            return self.token(text, "pad_token")
        if self.pad is None:
            raise DatasetError(
                f"{self.file} has no token for padding; name one that occurs in no text as "
                f"pad_token, e.g. token 0, pad_token={self.tokenizer.id_to_token(0)!r}"
            )
        return self.pad

    def end_token(self, text: str | None) -> int:
        """Return the token that ends a text: that with this text, or the tokeniser's own.

        Raises:
          DatasetError: if no text is given and the tokeniser's own is not known.
        """
        if text is not None:
            return self.token(text, "end_token")
        if self.end is None:
            raise DatasetError(
                f"end_token is not given, and no {_config_of(self.file)} names an eos_token; give "
                "the text of the token that ends a completion, as end_token='</s>'"
            )
        return self.end

    def lists(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special tokens around them."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def rows(self, texts: Sequence[str], length: int, pad: int) -> tuple[np.ndarray, int]:
        """Return ``[N, length]`` tokens, and how many texts were too long and are cut.

        A row has the special tokens of the model around the text, also of a text that is cut, and
        the token ``pad`` behind it.

        Raises:
          DatasetError: for a length that leaves no token for the text.
        """
        special = self.tokenizer.num_special_tokens_to_add(False)
        if length <= special:
            raise DatasetError(
                f"length={length} is not allowed; {self.file} adds {special} special tokens, so it "
                f"must be >= {special + 1}"
            )
        # Cut by the tokeniser, which keeps the special token at the end.
        self.tokenizer.enable_truncation(length)
        try:
            encoded = self.tokenizer.encode_batch(list(texts))
        finally:
            self.tokenizer.no_truncation()
        tokens = np.full((len(encoded), length), pad, token_dtype(self.vocabulary))
        for row, encoding in zip(tokens, encoded, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return tokens, sum(bool(encoding.overflowing) for encoding in encoded)


def read_tokeniser(path: str | os.PathLike) -> Tokeniser:
    """Read a tokeniser.

    Padding and cutting that its file asks for are turned off: many pad every text to 128 tokens.
    Which tokens pad and end a text stands in the ``tokenizer_config.json`` next to it, if it is
    there; the token for padding also in the file itself, or it is known by its name (`PAD_TOKENS`).

    Args:
      path: of a ``tokenizer.json`` of Hugging Face's ``tokenizers``, of a folder that holds one, or
        of a GGUF file, in which the tokens for padding and the end stand, too; or the name of a
        model that a package ships, e.g. ``"all-MiniLM-L6-v2"``, or ``"hub:owner/name"``; see
        `pflalign_jax.models.pretrained.find_model`.

    Raises:
      DatasetError: naming the file, if it is missing or no tokeniser, or the package is missing.
      PretrainedError: for a GGUF file that has no tokeniser which can be read.
    """
    file = _file_of(path)
    if file.suffix == ".gguf":
        return _of_gguf(file)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise DatasetError(
            f"tokenizer={str(path)!r}: there is no file {file}; give the tokenizer.json of the "
            "model, or the folder that holds it"
        )
    try:
        import tokenizers  # here, because nothing else needs it
    except ImportError as error:
        raise DatasetError(
            f"{file} needs the package tokenizers; pip install 'pflalign-jax[lm]'"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DatasetError(
            f"{file} is no tokeniser of the package tokenizers ({error}); it may be damaged"
        ) from error
    pads = [_named(file, tokenizer, "pad_token")]
    if tokenizer.padding is not None:
        pads.append(tokenizer.padding["pad_id"])
    pads += [tokenizer.token_to_id(name) for name in PAD_TOKENS]
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad = next((token for token in pads if token is not None), None)
    end = _named(file, tokenizer, "eos_token")
    chat = chat_of_folder(file.parent)
    return Tokeniser(file, tokenizer, _vocabulary(tokenizer), pad, end, chat)


def _file_of(path: str | os.PathLike) -> pathlib.Path:
    """Return a path, that of a packaged model where it is the name of one."""
    file = pathlib.Path(path).expanduser()
    if file.exists():
        return file
    # Here, as data without such a name do not pay for flax.
    from pflalign_jax.models.pretrained import find_model

    return find_model(path)


def _of_gguf(file: pathlib.Path) -> Tokeniser:
    """Return the tokeniser of a GGUF file."""
    # Here, as data without such a file do not pay for flax.
    from pflalign_jax.models.pretrained.gguf_file import open_gguf
    from pflalign_jax.models.pretrained.tokenizer import tokenizer_of_gguf

    opened = open_gguf(file)
    pad = opened.values.get("tokenizer.ggml.padding_token_id")
    # The context limits what the tokeniser itself makes of texts, and the token for padding is what
    # it fills them up with: neither is used.
    found = tokenizer_of_gguf(opened, context=0, pad_id=pad or 0, pad_token=None)
    chat = chat_of_gguf(file, opened.values)
    return Tokeniser(file, found.inner, _vocabulary(found.inner), pad, found.end_id, chat)


def _vocabulary(tokenizer: Any) -> int:
    """Return the largest token + 1, not the number of tokens: some vocabularies have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _config_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name("tokenizer_config.json")


def _named(file: pathlib.Path, tokenizer: Any, key: str) -> int | None:
    """Return the token that ``tokenizer_config.json`` has under a key; None if it has none."""
    config = _config_of(file)
    if not config.is_file():
        return None
    try:
        value = json.loads(config.read_text(encoding="utf8")).get(key)
        text = value["content"] if isinstance(value, dict) else value
        number = None if text is None else tokenizer.token_to_id(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{config} cannot be read, or names no {key} ({error!r}); correct or remove it"
        ) from error
    if text is not None and number is None:
        raise DatasetError(
            f"{config} has {key}={text!r}, which is no token of {file.name}; the two files are not "
            "of one model"
        )
    return number


def token_dtype(vocabulary: int) -> np.dtype:
    """Return uint16 where all tokens fit, which is half the memory of int32; else int32."""
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)


def check_vocabulary(tokeniser: Tokeniser, vocabulary: int | None) -> int:
    """Return the number of classes of next tokens: ``vocabulary``, or the tokeniser's if None.

    Raises:
      DatasetError: if it is less than the tokeniser's.
    """
    if vocabulary is None:
        return tokeniser.vocabulary
    if vocabulary < tokeniser.vocabulary:
        raise DatasetError(
            f"vocabulary={vocabulary} is not allowed; {tokeniser.file} has "
            f"{tokeniser.vocabulary} tokens"
        )
    return vocabulary
