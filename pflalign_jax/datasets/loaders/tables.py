"""Your own tables: a csv or parquet file per client, or one file with a client column."""

import pathlib
from collections.abc import Sequence

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.labels import label_columns, targets
from pflalign_jax.datasets.loaders.table_files import (
    ENDINGS,
    Table,
    check_splits,
    client_name,
    ending,
    read_table,
    without_missing,
)
from pflalign_jax.datasets.values import (
    MISSING_OPTIONS,
    finite_numbers,
    numbers_or_names,
    refuse_missing,
)

ADVICE = (
    "tables are a folder with one .csv or .parquet file per client, or one such file with a "
    "column of clients"
)

CLIENT_COLUMN = "client"
"""Name of the column of clients where the user names none."""


def load_tables(
    path: str,
    label: str | tuple[str, ...] = "label",
    client_column: str = CLIENT_COLUMN,
    split_column: str | None = None,
    missing: str = "refuse",
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> Examples:
    """Read tables of numbers with a label column; all other columns are features, in float32.

    Cells of a csv file are separated by commas, semicolons or tabs. Spaces around names and values
    do not count, blank lines neither. Columns of row numbers (``Unnamed: 0``, a column without a
    name, ``__index_level_0__``) are no features, and a note says so. Hidden files are not read.

    Args:
      path: a folder with one ``.csv``, ``.tsv``, ``.csv.gz``, ``.tsv.gz`` or ``.parquet`` file per
        client, whose name is the client's, or one file with a column of clients. Columns may be in
        any order; features take that of the first file.
      label: name of the column of labels, or names of several for regression and multilabel.
      client_column: name of the column of clients, in a single file.
      split_column: name of a column of ``train``, ``validation`` and ``test``; None: there is none.
      missing: what to do with rows whose client or label is missing (empty, ``NA``, ``nan``,
        ``null``, ...): ``"refuse"`` the file, or ``"leave_out"`` these rows, with a note.
      task: what the labels are: ``"classification"`` (also None), whole numbers or strings;
        ``"binary"``, two of these; ``"regression"``, numbers; ``"multilabel"``, 0 and 1 in several
        columns. See `targets`.
      ignore: names of further columns that are no features, as other labels or texts are.

    Raises:
      DatasetError: naming the file, the line and the column, the value and what to do.
    """
    if missing not in MISSING_OPTIONS:
        raise DatasetError(f"missing={missing!r} is unknown; choose from {MISSING_OPTIONS}")
    given = pathlib.Path(path)
    single = not given.is_dir()
    tables = [read_table(file) for file in _files(given)]
    labels = label_columns(label, task)
    special = [*labels] + ([client_column] if single else [])
    special += [split_column] if split_column else []
    special += ignore
    features = [name for name in tables[0].columns if name not in special]
    for table in tables:
        _check_columns(table, [*features, *special], labels)
    if not features:
        raise DatasetError(
            f"{tables[0].file} has no column besides {special}; there is nothing to learn from"
        )
    notes = _note_on_index(tables)
    required = [*labels, client_column] if single else [*labels]
    if missing == "leave_out":
        tables, note = without_missing(tables, required)
        notes += note
        if not tables:
            raise DatasetError(f"{given}: no row has a value in all of {required}")
    for table in tables:
        for name in required:
            what = "client" if single and name == client_column else "label"
            where = f"{table.file}: column {name!r}"
            refuse_missing(where, table.columns[name], what, table.place)
    x = np.concatenate([_features(table, features) for table in tables])
    lengths = [len(table.columns[labels[0]]) for table in tables]
    # All files together: labels are numbers only if they are in every file.
    columns = [np.concatenate([t.columns[name].astype(str) for t in tables]) for name in labels]
    found = targets(
        columns[0] if isinstance(label, str) else np.stack(columns, axis=1),
        given,
        task,
        place=lambda i: _place(tables, lengths, i),
        names=labels,
    )
    if single:
        owner = numbers_or_names(tables[0].columns[client_column], tables[0].file)
        owner = owner if owner.dtype.kind in "iu" else owner.astype(str)
    else:
        owner = np.repeat([client_name(table.file) for table in tables], lengths)
    split = None
    if split_column:
        split = np.concatenate([check_splits(table, split_column) for table in tables])
    examples = Examples(client_name(given), x, found.y, found.num_classes, owner, split, task=task)
    return examples._replace(
        notes=notes + found.notes,
        source=path,
        class_names=found.class_names,
        feature_names=tuple(features),
    )


def _features(table: Table, names: Sequence[str]) -> np.ndarray:
    """Return columns as float32 ``[N, F]``."""
    columns = [
        finite_numbers(table.columns[name], f"{table.file}: column {name!r}", table.place)
        for name in names
    ]
    return np.stack(columns, axis=1)


def _files(given: pathlib.Path) -> list[pathlib.Path]:
    """Return the tables of a folder, one of each client, or the one file."""
    if given.is_file():
        if ending(given) is None:
            raise DatasetError(f"{given} does not end with one of {ENDINGS}; {ADVICE}")
        return [given]
    if not given.is_dir():
        raise DatasetError(f"{given} does not exist; {ADVICE}")
    files = sorted(f for f in given.iterdir() if ending(f))
    if not files:
        raise DatasetError(f"{given} has no .csv or .parquet file; {ADVICE}")
    names = [client_name(file) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{given} has two files of client {twice!r}; keep one of them")
    return files


def _place(tables: Sequence[Table], lengths: Sequence[int], i: int) -> str:
    """Return words for row ``i`` of all tables together: its file and its line."""
    ends = np.cumsum(lengths)
    k = int(np.searchsorted(ends, i, side="right"))
    return f"{tables[k].place(i - int(ends[k]) + lengths[k])} of {tables[k].file.name}"


def _note_on_index(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return a note on columns of row numbers, if there are any."""
    names = sorted({name for table in tables for name in table.left_out})
    if not names:
        return ()
    return (
        f"columns {names} are left out: row numbers that pandas or R wrote, or without a name.",
    )


def _check_columns(table: Table, expected: Sequence[str], labels: Sequence[str]) -> None:
    """Raise an error if a table lacks an expected column or has another one."""
    missing = [name for name in expected if name not in table.columns]
    if missing:
        hint = "; name the label column" if missing[0] in labels else ""
        raise DatasetError(
            f"{table.file} has no column {missing[0]!r}, only {sorted(table.columns)}{hint}"
        )
    more = sorted(set(table.columns) - set(expected))
    if more:
        raise DatasetError(
            f"{table.file} has a column {more[0]!r} that the first file does not have"
        )
