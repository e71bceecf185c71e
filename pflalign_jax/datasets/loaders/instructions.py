"""Instructions and their completions by task, from json lines: the next token of the completion."""

import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.json_lines import read_json_lines, text_of
from pflalign_jax.datasets.loaders.tokens import (
    Tokeniser,
    check_vocabulary,
    read_tokeniser,
    token_dtype,
)
from pflalign_jax.models.base import IGNORED

_ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{{instruction}}\n\n{}### Response:\n"
)

TEMPLATES = {
    "alpaca": (
        _ALPACA.format(
            ", paired with an input that provides further context", "### Input:\n{input}\n\n"
        ),
        _ALPACA.format("", ""),
    ),
    "chatml": (
        "<|im_start|>user\n{instruction}\n\n{input}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    ),
}
"""Name to the prompt with an input and the prompt without one: that of Alpaca (Taori et al., 2023;
with a line end behind it, as alpaca-lora has it), and bare turns marked by ``<|im_start|>``,
without the system turn that such models' own templates begin with."""

CHAT = "chat"
"""The template that is the tokeniser's own."""

Writer = Callable[[str, str, str], tuple[str, str]]
"""``(instruction, input, output) -> (prompt, completion)``."""

TOO_LONG = ("refuse", "cut", "leave_out")
"""What can be done with an example that is longer than ``length``."""


class _Row(NamedTuple):
    """One line of a file: its place, owner, prompt and completion."""

    place: str
    owner: str
    prompt: str
    completion: str


def load_instructions(
    path: str,
    tokenizer: str,
    length: int = 256,
    template: str = "alpaca",
    client_column: str = "task",
    too_long: str = "refuse",
    end_token: str | None = None,
    pad_token: str | None = None,
    vocabulary: int | None = None,
) -> Examples:
    """Read instructions: ``x``, ``y [N, length]``, ``y[:, t]`` follows ``x[:, t]``.

    An example is a prompt, a completion and the end token. Only the completion and its end token
    are to be predicted: ``y`` is `IGNORED` (-1) for all of the prompt and for padding. Prompt and
    completion become tokens one by one, as when the completion is generated.

    Args:
      path: of a file with a json object in each line: texts ``instruction``, ``input`` (may be
        empty), ``output``, and the client.
      tokenizer: see `clinc150`.
      length: tokens per example, >= 1; shorter ones are padded.
      template: the prompt: ``"alpaca"``; ``"chat"``, the tokeniser's own chat template, as the
        model was trained with; ``"chatml"``, turns marked by ``<|im_start|>`` without a system
        turn; or your own text with ``{instruction}`` and ``{input}``. Where an input is empty,
        ``{input}`` and the spaces and line ends before it are left out.
      client_column: the key whose value is the client.
      too_long: what to do with an example of more than ``length`` tokens: ``"refuse"`` the file,
        ``"cut"`` its end off, or ``"leave_out"``, with a note. Cut examples of which nothing of the
        completion is left are left out.
      end_token: text of the token that ends a completion, e.g. ``"<|im_end|>"``; None: the
        ``eos_token`` of the ``tokenizer_config.json`` next to the tokeniser.
      pad_token: text of the token for padding; None: the tokeniser's own, or else token 0, as a
        model that looks at earlier tokens only sees no padding where a label counts.
      vocabulary: see `sotu_presidents`.

    Raises:
      DatasetError: naming the file and the line, for what is no json object of these texts, an
        empty instruction or completion, an input for which the template has no place, an example
        that is too long; naming the argument; or for a chat template that is missing or fails.
    """
    if length < 1:
        raise DatasetError(f"instructions: length={length} is not allowed; it must be >= 1")
    if too_long not in TOO_LONG:
        raise DatasetError(f"too_long={too_long!r} is unknown; choose from {TOO_LONG}")
    if template != CHAT:
        _prompts(template)
    tokeniser = read_tokeniser(tokenizer)
    num_classes = check_vocabulary(tokeniser, vocabulary)
    end = tokeniser.end_token(end_token)
    pad = 0 if pad_token is None and tokeniser.pad is None else tokeniser.pad_token(pad_token)
    rows = _rows(pathlib.Path(path), _writer(template, tokeniser), client_column)
    texts = [row.prompt for row in rows]
    # A chat template writes the tokens at the start itself.
    prompts = tokeniser.lists(texts) if template == CHAT else _prompt_tokens(tokeniser, texts)
    completions = tokeniser.lists([row.completion for row in rows])
    x = np.full((len(rows), length), pad, token_dtype(tokeniser.vocabulary))
    y = np.full((len(rows), length), IGNORED, np.int32)
    kept, longer = np.ones(len(rows), bool), 0
    for i, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True)):
        if not prompt or not completion:
            raise DatasetError(
                f"{row.place}: the {'completion' if prompt else 'prompt'} has no token that "
                f"{tokeniser.file} knows; correct or remove the line"
            )
        tokens = [*prompt, *completion, end]
        if len(tokens) - 1 > length:
            longer += 1
            if too_long == "refuse":
                raise DatasetError(
                    f"{row.place} has {len(tokens) - 1} tokens ({len(prompt)} of the prompt), more "
                    f"than length={length}; raise length, or say too_long='cut' or 'leave_out'"
                )
            kept[i] = too_long == "cut" and len(prompt) <= length
        given, following = tokens[:-1][:length], tokens[1:][:length]
        x[i, : len(given)] = given
        first = len(prompt) - 1  # here the completion's first token follows
        y[i, first : len(following)] = following[first:]
    notes = _notes(longer, int((~kept).sum()), len(rows), length)
    if not kept.any():
        raise DatasetError(f"{path}: length={length} leaves no example; raise it")
    return Examples(
        "instructions",
        x[kept],
        y[kept],
        num_classes,
        owner=np.array([row.owner for row in rows])[kept],
        notes=notes,
        source=str(path),
        task="next_token",
    )


def prompt_of(template: str, instruction: str, text: str) -> str:
    r"""Return the prompt of an instruction and its input, which may be empty.

    Args:
      template: see `load_instructions`; not ``"chat"``, which needs a tokeniser.
      instruction, text: of an example.

    Raises:
      DatasetError: for a template without ``{instruction}``, or without ``{input}`` where there is
        an input.

    >>> template = "Q: {instruction}\n{input}\nA: "
    >>> prompt_of(template, "Add.", "1 2"), prompt_of(template, "Add.", "")
    ('Q: Add.\n1 2\nA: ', 'Q: Add.\nA: ')
    """
    with_input, without = _prompts(template)
    if text.strip() and "{input}" not in with_input:
        raise DatasetError(f"template={template!r} has no {{input}}, and there is one: {text!r}")
    values = {"{instruction}": instruction, "{input}": text}
    # In one pass: an instruction may hold the words {input} itself.
    return re.sub(
        r"\{instruction\}|\{input\}",
        lambda match: values[match[0]],
        with_input if text.strip() else without,
    )


def _prompts(template: str) -> tuple[str, str]:
    """Return the prompts with an input and without one; raise an error for an unknown template."""
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{instruction}" not in template:
        raise DatasetError(
            f"template={template!r} is unknown; choose from {(*TEMPLATES, CHAT)}, or give a text "
            "with {instruction} and {input}"
        )
    return template, re.sub(r"\s*\{input\}", "", template)


def _writer(template: str, tokeniser: Tokeniser) -> Writer:
    """Return what makes prompts and completions by a template."""
    if template != CHAT:
        return lambda instruction, text, output: (prompt_of(template, instruction, text), output)
    turns = tokeniser.chat.turns()

    def write(instruction: str, text: str, output: str) -> tuple[str, str]:
        return turns(f"{instruction}\n\n{text}" if text.strip() else instruction, output)

    return write


def _rows(file: pathlib.Path, write: Writer, client_column: str) -> list[_Row]:
    """Return the lines of a file, checked."""
    rows = []
    keys = ("instruction", "input", "output", client_column)
    for place, row in read_json_lines(file, keys):
        texts = {key: text_of(place, row, key) for key in keys[:3]}
        for key, name in (("instruction", "instruction"), ("output", "completion, output")):
            if not texts[key].strip():
                raise DatasetError(f"{place} has an empty {name}; fill it in or remove the line")
        owner = row[client_column]
        if not isinstance(owner, (str, int)) or not str(owner).strip():
            raise DatasetError(
                f"{place} has {client_column}={owner!r}; it must be the name of a client"
            )
        try:
            prompt, completion = write(*(texts[key] for key in keys[:3]))
        except DatasetError as error:
            raise DatasetError(f"{place}: {error}") from error
        rows.append(_Row(place, str(owner), prompt, completion))
    return rows


def _prompt_tokens(tokeniser: Tokeniser, texts: list[str]) -> list[list[int]]:
    """Return the tokens of all prompts: with special tokens in front of them, but none behind."""
    prompts = []
    for encoding in tokeniser.tokenizer.encode_batch(texts):
        tokens, special = list(encoding.ids), encoding.special_tokens_mask
        # A token that ends a text would tell the model that there is no completion.
        while len(tokens) > 1 and special[len(tokens) - 1]:
            tokens.pop()
        prompts.append(tokens)
    return prompts


def _notes(longer: int, left_out: int, count: int, length: int) -> tuple[str, ...]:
    """Return notes on examples that are too long."""
    notes = []
    if longer > left_out:
        notes.append(f"{longer - left_out} of {count} examples are cut to {length} tokens.")
    if left_out:
        notes.append(f"{left_out} of {count} examples longer than {length} tokens are left out.")
    return tuple(notes)
