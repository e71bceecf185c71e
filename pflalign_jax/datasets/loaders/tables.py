"""Your own tables: a csv or parquet file per client, or one file with a client column."""

import csv
import pathlib

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples
from pflalign_jax.datasets.loaders.labels import mapped_labels

ADVICE = (
    "tables are a folder with one .csv or .parquet file per client, or one such file with a "
    "column of clients"
)


def load_tables(
    path: str,
    label: str = "label",
    client_column: str = "client",
    split_column: str | None = None,
) -> Examples:
    """Read tables of numbers with a label column; all other columns are features, in float32.

    Args:
      path: a folder with one ``.csv`` or ``.parquet`` file per client, whose name is the client's,
        or one file with a column of clients. Columns may come in any order; features are in the
        first file's.
      label: the column of labels, integers or strings.
      client_column: in a single file, the column of clients.
      split_column: a column of ``train``, ``validation`` and ``test``; None: there is none.

    Raises:
      DatasetError: naming the file, the row and the column, the value and what to do.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        files = sorted(f for f in place.iterdir() if f.suffix in (".csv", ".parquet"))
        if not files:
            raise DatasetError(f"{place} has no .csv or .parquet file; {ADVICE}")
        stems = [file.stem for file in files]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise DatasetError(f"{place} has two files of client {twice!r}; keep one of them")
    elif place.is_file():
        files = [place]
    else:
        raise DatasetError(f"{place} does not exist; {ADVICE}")
    tables = [_read(file) for file in files]
    single = not place.is_dir()
    special = [label] + ([client_column] if single else [])
    special += [split_column] if split_column else []
    features = [name for name in tables[0] if name not in special]
    pairs = list(zip(files, tables, strict=True))
    for file, table in pairs:
        _check_columns(file, table, [*features, *special], label)
    if not features:
        raise DatasetError(f"{files[0]} has no column beside {special}; there is nothing to learn")
    x = np.concatenate(
        [
            np.stack([_numbers(file, name, table[name]) for name in features], axis=1)
            for file, table in pairs
        ]
    )
    labels = np.concatenate([_strings(file, label, table[label]) for file, table in pairs])
    y, num_classes, notes = mapped_labels(_as_integers(labels), place)
    lengths = [len(table[label]) for table in tables]
    if single:
        owner = _as_integers(_strings(place, client_column, tables[0][client_column]))
    else:
        owner = np.repeat([file.stem for file in files], lengths)
    split = None
    if split_column:
        split = np.concatenate([_strings(file, split_column, t[split_column]) for file, t in pairs])
        unknown = sorted(set(split.tolist()) - set(SPLITS))
        if unknown:
            raise DatasetError(
                f"{place}: {split_column} has the value {unknown[0]!r}; use one of {SPLITS}"
            )
    return Examples(place.stem, x, y, num_classes, owner, split, notes=notes)


def _read(file):
    """Return a file's columns by name."""
    if file.suffix == ".parquet":
        return _read_parquet(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # Excel's begin with a mark
            rows = list(csv.reader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as csv ({error})") from error
    if len(rows) < 2:
        raise DatasetError(f"{file} has no row below its header; remove it or fill it")
    header = rows[0]
    if len(set(header)) != len(header):
        raise DatasetError(f"{file} names a column twice: {header}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DatasetError(
                f"{file}: line {number} has {len(row)} cells, the header {len(header)}"
            )
    return dict(zip(header, map(np.array, zip(*rows[1:], strict=True)), strict=True))


def _read_parquet(file):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(f"{file} needs pyarrow; pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{file} cannot be read as parquet ({error})") from error
    if not table.num_rows:
        raise DatasetError(f"{file} has no row; remove it or fill it")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def _check_columns(file, table, wanted, label):
    missing = [name for name in wanted if name not in table]
    if missing:
        hint = "; name the label column" if missing[0] == label else ""
        raise DatasetError(f"{file} has no column {missing[0]!r}, only {sorted(table)}{hint}")
    more = sorted(set(table) - set(wanted))
    if more:
        raise DatasetError(f"{file} has a column {more[0]!r} that the first file has not")


def _numbers(file, name, column):
    """Return a column as float32."""
    try:
        with np.errstate(over="ignore"):  # too large numbers are refused below
            values = column.astype(np.float32)
    except (ValueError, TypeError):
        values = np.array([_number(value) for value in column.tolist()], np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DatasetError(
            f"{file}: column {name!r} has {column.tolist()[bad[0]]!r} in row {bad[0] + 1}, which "
            "is not a finite number; impute it, encode it, or remove the row or the column"
        )
    return values


def _strings(file, name, column):
    """Return a column as strings, none missing."""
    if column.dtype.kind in "US":
        missing = column == ""
    else:
        missing = np.array([v is None or v != v or v == "" for v in column.tolist()])
    if missing.any():
        raise DatasetError(
            f"{file}: column {name!r} has no value in row {np.argmax(missing) + 1}; fill it in or "
            "remove the row"
        )
    return column.astype(str)


def _number(value):
    try:
        return float(value)
    except (ValueError, TypeError):
        return np.nan


def _as_integers(values):
    """Return integers where all strings are, else the strings."""
    try:
        integers = values.astype(np.int64)
    except (ValueError, OverflowError):
        return values
    return integers if (integers.astype(str) == values).all() else values
