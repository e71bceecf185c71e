"""Intents of short requests, as tokens: CLINC150 and Banking77, from their public files."""

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, find_file
from pflalign_jax.datasets.loaders.tokens import read_tokeniser

CLINC150 = Source(
    name="clinc150",
    title="Requests to an assistant in 150 intents of ten domains",
    homepage="https://github.com/clinc/oos-eval",
    licence="CC BY 3.0",
    citation="Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope "
    "Prediction, EMNLP 2019, arXiv:1909.02027",
    files=(
        File(
            "data_full.json",
            "https://raw.githubusercontent.com/clinc/oos-eval/master/data/data_full.json",
            None,
            2.5,
        ),
    ),
    counts={"train": 15_000, "validation": 3_000, "test": 4_500},
    classes=150,
)

_BASE = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data"

BANKING77 = Source(
    name="banking77",
    title="Questions to a bank in 77 intents",
    homepage="https://github.com/PolyAI-LDN/task-specific-datasets",
    licence="CC BY 4.0",
    citation="Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, "
    "NLP for ConvAI 2020, arXiv:2003.04807",
    files=(
        File("train.csv", f"{_BASE}/train.csv", None, 0.8),
        File("test.csv", f"{_BASE}/test.csv", None, 0.2),
    ),
    counts={"train": 10_003, "test": 3_080},
    classes=77,
)

OUT_OF_SCOPE = "oos"
"""CLINC150's name for requests that have none of the intents."""

CLINC_LISTS = {"train": "train", "validation": "val", "test": "test"}
"""Split to its list in CLINC150's file; those out of scope are in ``oos_train`` and so on."""

Items = list[tuple[str, str]]
"""Texts and their intents."""


def load_clinc150(
    path: str,
    tokenizer: str,
    length: int = 32,
    pad_token: str | None = None,
    out_of_scope: bool = False,
) -> Examples:
    """Read CLINC150: ``x [N, length]`` tokens, ``y [N]`` the intents in sorted order.

    The public split into train, validation and test stays in ``split``. There are no owners.

    Args:
      path: of ``data_full.json``, or of a folder that holds it.
      tokenizer: of the model: its ``tokenizer.json``, a folder that holds one, or its GGUF file.
      length: tokens per example, with the model's special tokens; longer texts are cut, which a
        note says, shorter ones padded.
      pad_token: text of the token for padding, e.g. ``"[PAD]"``; None: the tokeniser's own.
      out_of_scope: whether requests that have none of the intents are read too, as one more class
        ``"oos"``.

    Raises:
      DatasetError: naming the file, the list and the position, or the argument.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        file = find_file(file, ("data_full.json",), CLINC150)
    try:
        content = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} cannot be read as json ({error}); fetch it again") from error
    items: dict[str, Items] = {}
    for split, name in CLINC_LISTS.items():
        items[split] = _clinc_items(file, content, name)
        if out_of_scope:
            items[split] += _clinc_items(file, content, f"{OUT_OF_SCOPE}_{name}")
    examples = _examples("clinc150", file, items, tokenizer, length, pad_token)
    # What is out of scope is not in the counts of the source.
    return examples if out_of_scope else checked_counts(CLINC150, examples, file)


def load_banking77(
    path: str, tokenizer: str, length: int = 64, pad_token: str | None = None
) -> Examples:
    """Read Banking77: ``x [N, length]`` tokens, ``y [N]`` the intents in sorted order.

    The public split into train and test stays in ``split``. There are no owners.

    Args:
      path: of a folder with ``train.csv`` and ``test.csv``, columns ``text`` and ``category``.
      tokenizer, length, pad_token: see `load_clinc150`.

    Raises:
      DatasetError: naming the file and the line, or the argument.
    """
    folder = pathlib.Path(path)
    files = {split: find_file(folder, (f"{split}.csv",), BANKING77) for split in ("train", "test")}
    items = {split: _banking_items(file) for split, file in files.items()}
    examples = _examples("banking77", folder, items, tokenizer, length, pad_token)
    return checked_counts(BANKING77, examples, folder)


def _examples(
    name: str,
    where: pathlib.Path,
    items: Mapping[str, Items],
    tokenizer: str,
    length: int,
    pad_token: str | None,
) -> Examples:
    """Return texts as tokens and their intents as numbers."""
    tokeniser = read_tokeniser(tokenizer)
    pad = tokeniser.pad_token(pad_token)
    intents = sorted({intent for _, intent in items["train"]})
    for split in SPLITS:
        unknown = {intent for _, intent in items.get(split, [])} - set(intents)
        if unknown:
            raise DatasetError(
                f"{where}: {split} has the intent {min(unknown)!r}, which no training example has; "
                "fetch the files again"
            )
    number = {intent: i for i, intent in enumerate(intents)}
    both = [item for part in items.values() for item in part]
    x, cut = tokeniser.rows([text for text, _ in both], length, pad)
    notes = (f"{cut} of {len(both)} texts are cut to {length} tokens.",) if cut else ()
    return Examples(
        name,
        x,
        np.array([number[intent] for _, intent in both], np.int32),
        len(intents),
        split=np.repeat(list(items), [len(part) for part in items.values()]),
        notes=notes,
        source=str(where),
        task="classification",
        class_names=tuple(intents),
    )


def _clinc_items(file: pathlib.Path, content: Any, name: str) -> Items:
    """Return a list of CLINC150's file, checked."""
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DatasetError(
            f"{file} has no list {name!r} of [text, intent]; fetch it again from "
            f"{CLINC150.files[0].url}"
        )
    for i, row in enumerate(rows):
        if not _is_item(row):
            raise DatasetError(
                f"{file}: {name}[{i}] is {str(row)[:60]}; it must be [text, intent], both not empty"
            )
    return [(text, intent) for text, intent in rows]


def _banking_items(file: pathlib.Path) -> Items:
    """Return the rows of a csv file of Banking77, checked."""
    try:
        with file.open(newline="", encoding="utf8") as lines:
            reader = csv.reader(lines)
            header = next(reader, None)
            if header != ["text", "category"]:
                raise DatasetError(
                    f"{file} begins with {header}; its first line must be text,category"
                )
            items: Items = []
            for row in reader:
                if not _is_item(row):
                    raise DatasetError(
                        f"{file}: line {reader.line_num} is {str(row)[:60]}; a row has a text and "
                        "a category, both not empty"
                    )
                items.append((row[0], row[1]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as csv ({error}); fetch it again") from error
    if not items:
        raise DatasetError(f"{file} has no rows; fetch it again")
    return items


def _is_item(row: Sequence[Any]) -> bool:
    """Tell whether a row is a text and an intent."""
    fits = isinstance(row, list) and len(row) == 2
    return fits and all(isinstance(value, str) and value.strip() for value in row)
