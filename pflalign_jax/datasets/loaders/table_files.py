"""From a csv or parquet file to its columns, with the place of every row for messages."""

import csv
import gzip
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError
from pflalign_jax.datasets.values import is_missing

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""Endings of files that are read, in upper or lower case."""

DELIMITERS = ",;\t"
"""What can stand between the cells of a csv file; the header says which one does."""

INDEX_COLUMN = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""Names of columns that pandas and R write for row numbers."""


class Table(NamedTuple):
    """A file's columns.

    Attributes:
      file: for messages.
      columns: name to ``[N]`` strings, numbers, or objects.
      place: from a row, counted from 0, to its words: the line of a text file as an editor counts
        them, or the row of a parquet file, counted from 1.
      left_out: names of columns of row numbers, which are no features.
    """

    file: pathlib.Path
    columns: Mapping[str, np.ndarray]
    place: Callable[[int], str]
    left_out: tuple[str, ...] = ()

    def of_rows(self, rows: np.ndarray) -> "Table":
        """Return the table of these rows, counted from 0."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return self._replace(columns=columns, place=lambda row: self.place(int(rows[row])))


def ending(file: pathlib.Path) -> str | None:
    """Return which of `ENDINGS` a file has; None for another one, and for hidden files.

    Hidden files are no tables: macOS writes ``._a.csv`` next to ``a.csv``.
    """
    name = file.name.lower()
    found = next((end for end in ENDINGS if name.endswith(end)), None)
    return None if name.startswith(".") else found


def client_name(file: pathlib.Path) -> str:
    """Return a file's name without its ending."""
    return file.name[: -len(ending(file) or "")] if ending(file) else file.stem


def read_table(file: pathlib.Path) -> Table:
    """Read a file.

    Raises:
      DatasetError: naming the file, if it cannot be read, has no row, or names a column twice; the
        line, if it has another number of cells than the header; the column, if it holds lists.
    """
    table = _read_parquet(file) if ending(file) == ".parquet" else _read_csv(file)
    left_out = tuple(name for name in table.columns if INDEX_COLUMN.fullmatch(name))
    columns = {name: c for name, c in table.columns.items() if name not in left_out}
    return table._replace(columns=columns, left_out=left_out)


def without_missing(
    tables: Sequence[Table], required: Sequence[str]
) -> tuple[list[Table], tuple[str, ...]]:
    """Return the rows that have a value in all required columns, and a note on the others."""
    whole, left_out = [], 0
    for table in tables:
        missing = np.any([is_missing(table.columns[name]) for name in required], axis=0)
        left_out += int(missing.sum())
        if not missing.all():
            whole.append(table.of_rows(np.flatnonzero(~missing)))
    note = f"{left_out} rows without a value in {' or '.join(required)} are left out."
    return whole, (note,) if left_out else ()


def check_splits(table: Table, column: str) -> np.ndarray:
    """Return the column of splits, ``[N]`` strings.

    Raises:
      DatasetError: naming the place and the value of an unknown split.
    """
    values = table.columns[column].astype(str)
    unknown = ~np.isin(values, SPLITS)
    if unknown.any():
        row = int(np.argmax(unknown))
        raise DatasetError(
            f"{table.file}: {column} has the value {str(values[row])!r} in {table.place(row)}; use "
            f"one of {SPLITS}"
        )
    return values


def _read_csv(file: pathlib.Path) -> Table:
    """Return a text file's columns as strings without spaces around them."""
    try:
        # Excel's files begin with a byte-order mark, which utf-8-sig drops.
        opened: Any = gzip.open if file.name.lower().endswith(".gz") else open
        with opened(file, "rt", newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text, delimiter=_delimiter(text))
            header, rows, lines, last = None, [], [], 0
            for cells in reader:
                cells = [cell.strip() for cell in cells]
                if header is None:
                    header = cells
                elif any(cells):  # blank lines, at the end most often, are no rows
                    rows.append(cells)
                    lines.append(last + 1)  # a cell may have line breaks: where the row begins
                last = reader.line_num
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} cannot be read ({error}); save it as UTF-8") from error
    except (OSError, EOFError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as csv ({error})") from error
    if not header or not rows:
        raise DatasetError(f"{file} has no row below its header; remove it or fill it")
    _check_header(file, header)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise DatasetError(
                f"{file}: line {line} has {len(row)} cells, the header {len(header)}"
            )
    columns = dict(zip(header, map(np.array, zip(*rows, strict=True)), strict=True))
    return Table(file, columns, lambda row: f"line {lines[row]}")


def _delimiter(text: Any) -> str:
    """Return what separates the cells of the header, and go back to the beginning."""
    header = text.readline()
    text.seek(0)
    # The one that gives most cells, with quotes taken into account; a comma if there is one cell.
    return max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))


def _check_header(file: pathlib.Path, header: Sequence[str]) -> None:
    """Raise an error if a column is named twice; columns of row numbers may be."""
    names = [name for name in header if not INDEX_COLUMN.fullmatch(name)]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{file} names a column twice: {twice!r}; rename or remove one")


def _read_parquet(file: pathlib.Path) -> Table:
    """Return a parquet file's columns: numbers where they are numbers, else objects."""
    try:
        import pyarrow  # here, because it is optional
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(f"{file} needs pyarrow; pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{file} cannot be read as parquet ({error})") from error
    if not table.num_rows:
        raise DatasetError(f"{file} has no row; remove it or fill it")
    names = [name.strip() for name in table.column_names]
    _check_header(file, names)
    columns = {}
    for name, column in zip(names, table.columns, strict=True):
        kind = column.type
        if pyarrow.types.is_nested(kind):
            raise DatasetError(
                f"{file}: column {name!r} holds {kind} and not one value in each row; write every "
                "element as a column of its own, or use npz for arrays"
            )
        if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
            columns[name] = column.to_numpy()  # what is missing becomes NaN
        else:
            values = np.empty(len(column), object)
            values[:] = [v.strip() if isinstance(v, str) else v for v in column.to_pylist()]
            columns[name] = values
    return Table(file, columns, lambda row: f"row {row + 1}")
