"""AG News: the topic of a news item, from its csv files."""

import collections
import csv
import pathlib
import re

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, fetch, find_file

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

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
"""What the classes are called."""

WORD = re.compile(r"[a-z0-9']+")
"""A word: letters, digits and apostrophes, in lower case."""

PADDING, UNKNOWN = 0, 1
"""Tokens that are no word; words are numbered from 2."""


def load_ag_news(path: str | None = None, length: int = 64, vocabulary: int = 20_000) -> Examples:
    """Read AG News as words: ``x`` int32 ``[N, length]``, 0 = padding, 1 = any other word.

    The vocabulary is that of the training file. A text is the title and then the description; words
    after the first ``length`` are dropped.

    Args:
      path: directory with ``train.csv`` and ``test.csv``, rows of class 1..4, title, description;
        None: ``~/.cache/pflalign_jax/data/ag_news``, downloaded if it is not there.
      length: words per example, >= 1; longer items are cut, shorter ones padded.
      vocabulary: tokens in all: the most frequent words of the training set, one for any other
        word and one for padding; >= 3, and as many as the model's.

    Raises:
      DatasetError: naming the argument, or the file and its line.
    """
    if length < 1 or vocabulary < 3:
        raise DatasetError(
            f"ag_news: length={length}, vocabulary={vocabulary} are not allowed; use at least 1, 3"
        )
    directory = fetch(SOURCE) if path is None else pathlib.Path(path)
    items = {s: _items(find_file(directory, (f"{s}.csv",), SOURCE)) for s in ("train", "test")}
    # Of training texts alone: a vocabulary with words of the test would have seen it.
    counts = collections.Counter(word for words, _ in items["train"] for word in words)
    # The word breaks ties, so that the vocabulary does not depend on the order of the file.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - 2]
    token_of = {word: token for token, word in enumerate(frequent, 2)}
    both = [*items["train"], *items["test"]]
    x = np.full((len(both), length), PADDING, np.int32)
    for row, (words, _) in zip(x, both, strict=True):
        tokens = [token_of.get(word, UNKNOWN) for word in words[:length]]
        row[: len(tokens)] = tokens
    y = np.array([label for _, label in both], np.int32)
    split = np.repeat(["train", "test"], [len(items["train"]), len(items["test"])])
    return checked_counts(
        SOURCE, Examples("ag_news", x, y, 4, split=split, class_names=TOPICS), directory
    )


def _items(file: pathlib.Path) -> list[tuple[list[str], int]]:
    """Return the words and the class 0..3 of every news item."""
    items = []
    try:
        with file.open(newline="", encoding="utf8") as text:
            for number, row in enumerate(csv.reader(text), 1):
                if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
                    raise DatasetError(
                        f"{file}: line {number} begins {str(row)[:60]}; a row has a class 1..4, a "
                        "title and a description"
                    )
                items.append((WORD.findall(f"{row[1]} {row[2]}".lower()), int(row[0]) - 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as csv ({error}); fetch it again") from error
    if not items:
        raise DatasetError(f"{file} is empty; fetch it again from {SOURCE.files[0].url}")
    return items
