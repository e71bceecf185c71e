"""AG News: the topic of a news item, from its csv files."""

import collections
import csv
import pathlib
import re

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, fetch, found

_BASE = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"

SOURCE = Source(
    name="ag_news",
    title="News items in four topics",
    homepage="http://groups.di.unipi.it/~gulli/AG_corpus_of_news_articles.html",
    licence="non-commercial use",
    citation="Zhang, Zhao and LeCun, Character-level Convolutional Networks for Text "
    "Classification, arXiv:1509.01626",
    files=(
        File("train.csv", f"{_BASE}/train.csv", "md5:b1a00f826fdfbd249f79597b59e1dc12", 29.5),
        File("test.csv", f"{_BASE}/test.csv", "md5:d52ea96a97a2d943681189a97654912d", 1.9),
    ),
    counts={"train": 120_000, "test": 7_600},
    classes=4,
)

WORD = re.compile(r"[a-z0-9']+")
"""What counts as a word, in lower case."""


def load_ag_news(path: str | None = None, length: int = 64, vocabulary: int = 20_000) -> Examples:
    """Read AG News as words: ``x`` int32 ``[N, length]``, 0 = padding, 1 = any other word.

    Words are counted in the training file only; titles come before descriptions, and what is
    longer is cut.

    Args:
      path: directory with ``train.csv`` and ``test.csv``, rows of class 1..4, title, description;
        None: `fetch`.
      length: words per example, >= 1.
      vocabulary: tokens in all, >= 3; as many as the model's.

    Raises:
      DatasetError: naming the argument, or the file and its line.
    """
    if length < 1 or vocabulary < 3:
        raise DatasetError(
            f"ag_news: length={length}, vocabulary={vocabulary} are not allowed; use at least 1, 3"
        )
    directory = fetch(SOURCE) if path is None else pathlib.Path(path)
    rows = {s: _rows(found(directory, (f"{s}.csv",), SOURCE)) for s in ("train", "test")}
    counts = collections.Counter(word for words, _ in rows["train"] for word in words)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - 2]
    number = {word: i for i, word in enumerate(frequent, 2)}
    every = [*rows["train"], *rows["test"]]
    x = np.zeros((len(every), length), np.int32)
    for tokens, (words, _) in zip(x, every, strict=True):
        found_words = [number.get(word, 1) for word in words[:length]]
        tokens[: len(found_words)] = found_words
    y = np.array([label for _, label in every], np.int32)
    split = np.repeat(["train", "test"], [len(rows["train"]), len(rows["test"])])
    return checked_counts(SOURCE, Examples("ag_news", x, y, 4, split=split), directory)


def _rows(file):
    """Return the words and the class 0..3 of every row."""
    rows = []
    try:
        with file.open(newline="", encoding="utf8") as text:
            for number, row in enumerate(csv.reader(text), 1):
                if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
                    raise DatasetError(
                        f"{file}: line {number} begins {str(row)[:60]}; a row has a class 1..4, a "
                        "title and a description"
                    )
                rows.append((WORD.findall(f"{row[1]} {row[2]}".lower()), int(row[0]) - 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as csv ({error}); fetch it again") from error
    if not rows:
        raise DatasetError(f"{file} is empty; fetch it again from {SOURCE.files[0].url}")
    return rows
