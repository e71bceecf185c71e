"""Your own tables: a csv or parquet file per client, or one file with a client column."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples
from pflalign_jax.datasets.loaders.labels import mapped_labels

ADVICE = (
    "tables are a folder with one .csv or .parquet file per client, or one such file with a "
    "column of clients"
)


Table = Mapping[str, np.ndarray]
"""Columns by name."""


def load_tables(
    path: str,
    label: str = "label",
    client_column: str = "client",
    split_column: str | None = None,
) -> Examples:
    """Read tables of numbers with a label column; all other columns are features, in float32.

    Args:
      path: a folder with one ``.csv`` or ``.parquet`` file per client, whose name is the client's,
        or one file with a column of clients. Columns may be in any order; features take that of
        the first file.
      label: name of the column of labels, integers or strings.
      client_column: name of the column of clients, in a single file.
      split_column: name of a column of ``train``, ``validation`` and ``test``; None: there is none.

    Raises:
      DatasetError: naming the file, the row and the column, the value and what to do.
    """
    given = pathlib.Path(path)
    tables = {file: _read(file) for file in _files(given)}
    first_file, first_table = next(iter(tables.items()))
    single = not given.is_dir()
    special = [label] + ([client_column] if single else [])
    special += [split_column] if split_column else []
    features = [name for name in first_table if name not in special]
    for file, table in tables.items():
        _check_columns(file, table, [*features, *special], label)
    if not features:
        raise DatasetError(
            f"{first_file} has no column besides {special}; there is nothing to learn"
        )
    x = np.concatenate(
        [
            np.stack([_numbers(file, name, table[name]) for name in features], axis=1)
            for file, table in tables.items()
        ]
    )
    labels = np.concatenate([_strings(file, label, t[label]) for file, t in tables.items()])
    # All files together: labels are integers only if they are in every file.
    y, num_classes, notes = mapped_labels(_as_integers(labels), given)
    if single:
        owner = _as_integers(_strings(given, client_column, first_table[client_column]))
    else:
        lengths = [len(table[label]) for table in tables.values()]
        owner = np.repeat([file.stem for file in tables], lengths)
    split = _splits(given, tables, split_column) if split_column else None
    return Examples(given.stem, x, y, num_classes, owner, split, notes=notes)


def _files(given: pathlib.Path) -> list[pathlib.Path]:
    """Return the tables of a folder, one of each client, or the one file."""
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise DatasetError(f"{given} does not exist; {ADVICE}")
    files = sorted(f for f in given.iterdir() if f.suffix in (".csv", ".parquet"))
    if not files:
        raise DatasetError(f"{given} has no .csv or .parquet file; {ADVICE}")
    stems = [file.stem for file in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise DatasetError(f"{given} has two files of client {twice!r}; keep one of them")
    return files


def _splits(given: pathlib.Path, tables: Mapping[pathlib.Path, Table], column: str) -> np.ndarray:
    """Return the checked column of splits of all tables."""
    split = np.concatenate([_strings(file, column, t[column]) for file, t in tables.items()])
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise DatasetError(f"{given}: {column} has the value {unknown[0]!r}; use one of {SPLITS}")
    return split


def _read(file: pathlib.Path) -> Table:
    """Return a file's columns by name."""
    if file.suffix == ".parquet":
        return _read_parquet(file)
    try:
        # Excel's files begin with a byte-order mark, which utf-8-sig drops.
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = list(csv.reader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as csv ({error})") from error
    if len(rows) < 2:
        raise DatasetError(f"{file} has no row below its header; remove it or fill it")
    header = rows[0]
    if len(set(header)) != len(header):
        raise DatasetError(f"{file} names a column twice: {header}")
    for number, row in enumerate(rows[1:], 2):  # lines of a file count from 1, the header's
        if len(row) != len(header):
            raise DatasetError(
                f"{file}: line {number} has {len(row)} cells, the header {len(header)}"
            )
    return dict(zip(header, map(np.array, zip(*rows[1:], strict=True)), strict=True))


def _read_parquet(file: pathlib.Path) -> Table:
    """Return a parquet file's columns by name."""
    try:
        import pyarrow.parquet  # here, because it is optional
    except ImportError as error:
        raise DatasetError(f"{file} needs pyarrow; pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{file} cannot be read as parquet ({error})") from error
    if not table.num_rows:
        raise DatasetError(f"{file} has no row; remove it or fill it")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def _check_columns(file: pathlib.Path, table: Table, expected: Sequence[str], label: str) -> None:
    """Raise an error if a table lacks an expected column or has another one."""
    missing = [name for name in expected if name not in table]
    if missing:
        hint = "; name the label column" if missing[0] == label else ""
        raise DatasetError(f"{file} has no column {missing[0]!r}, only {sorted(table)}{hint}")
    more = sorted(set(table) - set(expected))
    if more:
        raise DatasetError(f"{file} has a column {more[0]!r} that the first file does not have")


def _numbers(file: pathlib.Path, name: str, column: np.ndarray) -> np.ndarray:
    """Return a column as float32."""
    try:
        with np.errstate(over="ignore"):  # numbers above float32 become infinite: refused below
            values = column.astype(np.float32)
    except (ValueError, TypeError):
        # One by one, so that the message can name the row that is not a number.
        values = np.array([_number(value) for value in column.tolist()], np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DatasetError(
            f"{file}: column {name!r} has {column.tolist()[bad[0]]!r} in row {bad[0] + 1}, which "
            "is not a finite number; impute it, encode it, or remove the row or the column"
        )
    return values


def _strings(file: pathlib.Path, name: str, column: np.ndarray) -> np.ndarray:
    """Return a column as strings, none missing."""
    if column.dtype.kind in "US":
        missing = column == ""
    else:
        # Parquet's missing values are None, and NaN where the column has numbers.
        missing = np.array([v is None or v != v or v == "" for v in column.tolist()])
    if missing.any():
        raise DatasetError(
            f"{file}: column {name!r} has no value in row {np.argmax(missing) + 1}; fill it in or "
            "remove the row"
        )
    return column.astype(str)


def _number(value: Any) -> float:
    """Return a value as a float; NaN if it is not a number."""
    try:
        return float(value)
    except (ValueError, TypeError):
        return np.nan


def _as_integers(values: np.ndarray) -> np.ndarray:
    """Return integers if all strings are integers, else the strings."""
    try:
        integers = values.astype(np.int64)
    except (ValueError, OverflowError):
        return values
    # "007" is a name and not the number 7, and two clients "7" and "007" must stay two.
    return integers if (integers.astype(str) == values).all() else values
