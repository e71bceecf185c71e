"""Folders of Hugging Face's ``datasets``: arrow or parquet, one folder or one for each client."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.images import read_pixels
from pflalign_jax.datasets.loaders.labels import Targets, targets
from pflalign_jax.datasets.values import held_by

ADVICE = (
    "read is a folder of Dataset.save_to_disk or DatasetDict.save_to_disk, one with parquet files "
    "named train-*.parquet and test-*.parquet, or a folder with such a folder for each client, as "
    "for partitions of flwr-datasets"
)

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Names of splits as they are found, and those used here."""


class _Part(NamedTuple):
    """The files of one split of one client; None where there is one client, or no split."""

    client: str | None
    split: str | None
    files: Sequence[pathlib.Path]


def load_hugging_face(
    path: str,
    label: str = "label",
    features: str | None = None,
    client_column: str | None = None,
    task: str | None = None,
) -> Examples:
    """Read a dataset with its splits, and with its clients if it has any.

    Args:
      path: a folder of ``save_to_disk`` or of parquet files; or a folder of such folders, one for
        each client and named like it, as one saves the partitions of flwr-datasets.
      label: name of the column of labels: integers, strings, numbers, or lists of equal length of
        numbers or of 0 and 1, as the task needs.
      features: name of the column of features: images, numbers, or lists of equal length of
        numbers or tokens; None: the column of images if there is one, else all columns but those
        of label and client.
      client_column: name of the column of clients; None: there is none.
      task: what the labels are: ``"classification"`` (also None), ``"binary"``, ``"regression"`` or
        ``"multilabel"``. See `targets`.

    Raises:
      DatasetError: naming the file and the column, the value and what to do.
    """
    folder = pathlib.Path(path)
    parts = _parts(folder)
    tables = [_table(part.files) for part in parts]
    names = _feature_columns(parts[0].files[0], tables[0], label, features, client_column)
    xs: list[np.ndarray] = []
    ys, owners, splits = [], [], []
    for part, table in zip(parts, tables, strict=True):
        file = part.files[0]
        x = _features(file, table, names)
        if xs and (x.shape[1:] != xs[0].shape[1:] or x.dtype != xs[0].dtype):
            raise DatasetError(
                f"{file} has features {x.dtype} of shape {x.shape[1:]}, others {xs[0].dtype} of "
                f"{xs[0].shape[1:]}; they must be equal"
            )
        xs.append(x)
        ys.append(_column(file, table, label))
        if client_column is not None:
            owners.append(_column(file, table, client_column))
        elif part.client is not None:
            owners.append(np.full(len(x), part.client))
        splits.append(np.full(len(x), part.split or ""))
    found = _labels(folder, tables[0], label, np.concatenate(ys), task)
    return Examples(
        folder.resolve().name,
        np.concatenate(xs),
        found.y,
        found.num_classes,
        np.concatenate(owners) if owners else None,
        None if parts[0].split is None else np.concatenate(splits),
        notes=found.notes,
        split_is_final=True,
        task=task,
        class_names=found.class_names,
    )


def _parts(folder: pathlib.Path) -> list[_Part]:
    """Return the splits of the one dataset in a folder, or of those of all clients."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a directory; {ADVICE}")
    datasets: dict[str | None, dict[str | None, list[pathlib.Path]]] = {None: _splits(folder)}
    if not datasets[None]:
        found = {f.name: _splits(f) for f in sorted(folder.iterdir()) if f.is_dir()}
        datasets = {client: splits for client, splits in found.items() if splits}
    if not datasets:
        raise DatasetError(f"{folder} has no arrow or parquet file; {ADVICE}")
    parts = [_Part(c, s, files) for c, splits in datasets.items() for s, files in splits.items()]
    whole = [part for part in parts if part.split is None]
    if whole and len(whole) < len(parts):
        raise DatasetError(
            f"{folder}: {whole[0].files[0]} belongs to no split and others do; split all or none"
        )
    return parts


def _splits(folder: pathlib.Path) -> dict[str | None, list[pathlib.Path]]:
    """Return the files of a dataset's splits, the key None for one without; empty if it is none."""
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json", "splits")
        return {_split_name(folder, name): _arrow_files(folder / name) for name in names}
    if (folder / "state.json").is_file():
        return {None: _arrow_files(folder)}
    splits: dict[str | None, list[pathlib.Path]] = {}
    inside = [folder, folder / "data", *(folder / name for name in SPLIT_NAMES)]
    for file in sorted(f for place in inside for f in place.glob("*.parquet")):
        # train-00000-of-00002.parquet, train.parquet, train/0000.parquet
        word = file.parent.name if file.parent.name in SPLIT_NAMES else file.stem.split("-")[0]
        splits.setdefault(SPLIT_NAMES.get(word), []).append(file)
    return splits


def _split_name(folder: pathlib.Path, name: str) -> str:
    if name not in SPLIT_NAMES:
        raise DatasetError(
            f"{folder} has a split {name!r}; those that are known are {tuple(SPLIT_NAMES)}. Rename "
            "or remove it, and save the dataset again"
        )
    return SPLIT_NAMES[name]


def _arrow_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that the ``state.json`` of one saved Dataset lists."""
    if (folder / "indices.arrow").exists():
        raise DatasetError(
            f"{folder} was saved by datasets 1, with a selection in indices.arrow; save it again "
            "with a later version"
        )
    try:
        files = [folder / each["filename"] for each in _json(folder / "state.json", "_data_files")]
    except (TypeError, KeyError) as error:
        raise DatasetError(f"{folder / 'state.json'} lists no files ({error!r})") from error
    if not files:
        raise DatasetError(f"{folder / 'state.json'} lists no files; the dataset is empty")
    return files


def _json(file: pathlib.Path, key: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file} cannot be read, or has no {key!r} ({error!r}); save the dataset again"
        ) from error


def _table(files: Sequence[pathlib.Path]) -> Any:
    """Return all rows of the files of one split, a `pyarrow.Table`."""
    try:
        import pyarrow
        import pyarrow.parquet  # here, because it is optional
    except ImportError as error:
        raise DatasetError(f"{files[0]} needs pyarrow; pip install pyarrow") from error
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                tables.append(pyarrow.parquet.read_table(file))
            else:  # a stream of record batches, as ArrowWriter writes it
                with pyarrow.memory_map(str(file)) as source:
                    tables.append(pyarrow.ipc.open_stream(source).read_all())
            if tables[-1].schema.names != tables[0].schema.names:
                raise DatasetError(
                    f"{file} has columns {tables[-1].schema.names}, {files[0].name} "
                    f"{tables[0].schema.names}; they must be equal"
                )
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetError(
                f"{file} cannot be read as {file.suffix[1:]} ({error}); it is missing, truncated "
                "or damaged"
            ) from error
    return pyarrow.concat_tables(tables)


def _feature_columns(
    file: pathlib.Path, table: Any, label: str, features: str | None, client: str | None
) -> list[str]:
    """Return the names of the columns of features."""
    for name in (label, features, client):
        if name is not None and name not in table.column_names:
            raise DatasetError(f"{file} has no column {name!r}, only {table.column_names}")
    if features is not None:
        return [features]
    others = [name for name in table.column_names if name not in (label, client)]
    images = [name for name in others if _is_image(table.schema.field(name).type)]
    if not others or len(images) > 1:
        raise DatasetError(
            f"{file} has columns {table.column_names}; name the one of features, features=..."
        )
    return images or others


def _is_image(kind: Any) -> bool:
    """Tell whether a column has images as files: ``{"bytes", "path"}``."""
    import pyarrow

    return bool(pyarrow.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _features(file: pathlib.Path, table: Any, names: Sequence[str]) -> np.ndarray:
    """Return images as uint8 ``[N, H, W, C]``, integers in lists as int32, else float32."""
    if any(name not in table.column_names for name in names):
        raise DatasetError(f"{file} has columns {table.column_names}; it needs {names}")
    if _is_image(table.schema.field(names[0]).type):
        return _images(file, names[0], table[names[0]])
    columns = [_column(file, table, name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.dtype.kind not in "biuf" or (column.ndim > 1 and len(names) > 1):
            raise DatasetError(
                f"{file}: column {name!r} is of type {table.schema.field(name).type}; features "
                "are numbers in columns, or one column of lists of them: name it, features=..., "
                "turn text into tokens, or remove the column"
            )
    x = columns[0] if len(names) == 1 else np.stack(columns, axis=1)
    if x.ndim == 1:
        x = x[:, None]
    if x.dtype == np.uint8:
        return x[..., None] if x.ndim == 3 else x  # grey images
    tokens = len(names) == 1 and columns[0].ndim == 2 and x.dtype.kind in "iu"
    if tokens:
        return held_by(x, np.int32, f"{file}: column {names[0]!r}")
    with np.errstate(over="ignore"):  # numbers above float32 become infinite: refused below
        x = x.astype(np.float32)
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
    if bad.any():
        raise DatasetError(
            f"{file}: row {int(np.argmax(bad))} of the split has NaN or infinite features; remove "
            "or impute them"
        )
    return x


def _column(file: pathlib.Path, table: Any, name: str) -> np.ndarray:
    """Return a column as an array, ``[N, ...]`` if it has lists of equal length."""
    import pyarrow
    import pyarrow.compute

    if name not in table.column_names:
        raise DatasetError(f"{file} has no column {name!r}, only {table.column_names}")
    column, shape = table[name], [table.num_rows]
    while True:
        if isinstance(column.type, pyarrow.BaseExtensionType):  # Array2D, if datasets is imported
            column = pyarrow.chunked_array([chunk.storage for chunk in column.chunks])
        if column.null_count:
            row = pyarrow.compute.index(column.is_null(), True).as_py() // max(
                int(np.prod(shape[1:])), 1
            )
            raise DatasetError(
                f"{file}: column {name!r} has no value in row {row} of the split; fill it in or "
                "remove the row"
            )
        kinds = pyarrow.types
        if not (kinds.is_list(column.type) or kinds.is_large_list(column.type)
                or kinds.is_fixed_size_list(column.type)):  # fmt: skip
            return column.to_numpy().reshape(shape)
        lengths = pyarrow.compute.list_value_length(column).unique().to_pylist()
        if len(lengths) > 1:
            raise DatasetError(
                f"{file}: column {name!r} has lists of {min(lengths)} to {max(lengths)} values; "
                "pad or cut them to one length"
            )
        shape.append(*lengths or [0])
        column = pyarrow.compute.list_flatten(column)


def _images(file: pathlib.Path, name: str, column: Any) -> np.ndarray:
    """Return decoded images, uint8 ``[N, H, W, C]``: grey ones with one channel, else three."""
    images: list[np.ndarray] = []
    for row, value in enumerate(column.to_pylist()):
        try:
            pixels = read_pixels(io.BytesIO(value["bytes"]))
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"{file}: column {name!r} has no image in row {row} of the split ({error}); save "
                "the dataset with the images in it"
            ) from error
        if images and pixels.shape != images[0].shape:
            raise DatasetError(
                f"{file}: the image in row {row} of the split has shape {pixels.shape}, others "
                f"{images[0].shape}; resize them"
            )
        images.append(pixels)
    return np.stack(images) if images else np.zeros((0,), np.uint8)


def _labels(
    folder: pathlib.Path, table: Any, label: str, y: np.ndarray, task: str | None
) -> Targets:
    """Return `targets`; for classification, classes of a ClassLabel that are absent count, too."""
    if y.dtype == object:
        y = y.astype(str)
    names = _class_names(table, label)
    if not names or y.dtype.kind not in "iu" or task not in (None, "classification"):
        return targets(y, folder, task, names=[label] if y.ndim == 1 else ())
    if len(y) and (y.min() < 0 or y.max() >= len(names)):
        bad = y.min() if y.min() < 0 else y.max()
        raise DatasetError(
            f"{folder}: label {bad} is outside 0..{len(names) - 1}, the classes of {label!r}; "
            "remove examples without a label"
        )
    return Targets(y.astype(np.int32), len(names), class_names=tuple(names))


def _class_names(table: Any, label: str) -> Sequence[str]:
    """Return the names of a ClassLabel from the schema; empty if there are none."""
    try:
        metadata: Mapping[str, Any] = json.loads(table.schema.metadata[b"huggingface"])
        return list(metadata["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return []  # written by another program, or labels of another type
