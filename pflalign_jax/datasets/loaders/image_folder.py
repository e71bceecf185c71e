"""Your own images: a folder of clients with a folder of each class, or a table that names files."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.images import COLOUR, GREY, read_pixels
from pflalign_jax.datasets.loaders.labels import label_columns, targets
from pflalign_jax.datasets.loaders.table_files import (
    Table,
    check_splits,
    client_name,
    ending,
    read_table,
    without_missing,
)
from pflalign_jax.datasets.values import MISSING_OPTIONS, numbers_or_names, refuse_missing

ADVICE = (
    "images are client/class/*.png (or .jpg, .jpeg) below one folder, or are named by a csv file "
    "with the columns file, label and client"
)

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
"""Endings of files in folders that are read, in upper or lower case."""


class _Files(NamedTuple):
    """The files of all images, and what is known of each.

    Attributes:
      images: N paths.
      places: ``[N]`` words for messages: the line of a table; empty where the path says all.
      y, num_classes, owner, split, notes, class_names: as in `Examples`.
    """

    images: Sequence[pathlib.Path]
    places: Sequence[str]
    y: np.ndarray
    num_classes: int
    owner: np.ndarray
    split: np.ndarray | None
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None


def load_image_folder(
    path: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    file_column: str = "file",
    label: str | tuple[str, ...] = "label",
    client_column: str = "client",
    split_column: str | None = None,
    missing: str = "refuse",
    task: str | None = None,
) -> Examples:
    """Read images as uint8 ``[N, H, W, C]``, C is 1 or 3; hidden files are not read.

    Args:
      path: a folder with a folder for each client that holds one for each class; classes of all
        clients together are numbered in sorted order, with a note. Or a csv, tsv or parquet file
        whose rows name images, relative to its own folder.
      size: ``(H, W)`` that all images are resized to, without keeping their proportions; None: all
        must have one size.
      channels: 1 makes all images grey, 3 all RGB; None: all must be of one kind.
      file_column: of a table: name of the column of files.
      label: of a table: name of the column of labels, or names of several for regression and
        multilabel.
      client_column: of a table: name of the column of clients.
      split_column: of a table: name of a column of ``train``, ``validation`` and ``test``; None:
        there is none.
      missing: of a table: what to do with rows whose client or label is missing: ``"refuse"`` the
        file, or ``"leave_out"`` these rows, with a note.
      task: what the labels are, see `targets`; None: classification.

    Raises:
      DatasetError: naming the file, and the line of a table, and what to do: for images of
        different sizes or kinds, damaged or missing ones, or ones that stand elsewhere.
    """
    if size is not None and (len(size) != 2 or not all(type(n) is int and n > 0 for n in size)):
        raise DatasetError(f"size={size} is not allowed; it must be two whole numbers, (H, W)")
    if channels not in (None, GREY, COLOUR):
        raise DatasetError(f"channels={channels} is not allowed; it must be 1 or 3")
    if missing not in MISSING_OPTIONS:
        raise DatasetError(f"missing={missing!r} is unknown; choose from {MISSING_OPTIONS}")
    given = pathlib.Path(path)
    if given.is_dir():
        columns = (file_column, label, client_column, split_column)
        if columns != ("file", "label", "client", None):
            raise DatasetError(
                f"{given} is a folder, and {columns} are names of columns; give the path of a csv "
                "file, or leave them out"
            )
        files = _of_folder(given, task)
    else:
        required = (file_column, client_column, *label_columns(label, task))
        files = _of_table(given, required, isinstance(label, str), split_column, missing, task)
    x = _read_images(files, size, channels)
    name = client_name(given) if given.is_file() else given.resolve().name
    examples = Examples(name, x, files.y, files.num_classes, files.owner, files.split, task=task)
    return examples._replace(notes=files.notes, source=path, class_names=files.class_names)


def _of_folder(folder: pathlib.Path, task: str | None) -> _Files:
    """Return the images ``client/class/*.png`` of a folder."""
    images: list[pathlib.Path] = []
    others = 0
    for client in _inside(folder, "clients"):
        count = len(images)
        for label in _inside(client, "classes of a client"):
            for file in sorted(label.iterdir()):
                if file.is_dir() and not file.name.startswith("."):
                    raise DatasetError(f"{file} is a folder inside that of a class; {ADVICE}")
                if _is_image(file):
                    images.append(file)
                elif not file.name.startswith("."):
                    others += 1
        if len(images) == count:
            raise DatasetError(f"{client} has no image; remove the folder or fill it. {ADVICE}")
    if not images:
        raise DatasetError(f"{folder} has no image; {ADVICE}")
    labels = np.array([file.parent.name for file in images])
    y, num_classes, notes, names = targets(labels, folder, task, place=lambda i: str(images[i]))
    if others:
        notes += (f"{others} files that do not end with one of {IMAGE_ENDINGS} are not read.",)
    owner = np.array([file.parent.parent.name for file in images])
    return _Files(images, [""] * len(images), y, num_classes, owner, None, notes, names)


def _inside(folder: pathlib.Path, what: str) -> list[pathlib.Path]:
    """Return the folders in a folder; raise an error for an image, which stands too high."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in found:
        if _is_image(path):
            raise DatasetError(f"{path} stands beside the folders of {what}; {ADVICE}")
    return [path for path in found if path.is_dir()]


def _is_image(path: pathlib.Path) -> bool:
    """Tell whether this is an image by its name; macOS writes ``._a.png`` next to ``a.png``."""
    name = path.name.lower()
    return not name.startswith(".") and name.endswith(IMAGE_ENDINGS) and path.is_file()


def _of_table(
    file: pathlib.Path,
    required: Sequence[str],
    one_label: bool,
    split_column: str | None,
    missing: str,
    task: str | None,
) -> _Files:
    """Return the images that the rows of a table name.

    Args:
      file: the table.
      required: names of the columns of files and clients, then those of labels.
      one_label: whether ``y`` is ``[N]`` and not ``[N, M]``.
      split_column, missing, task: see `load_image_folder`.
    """
    if not file.is_file() or ending(file) is None:
        raise DatasetError(f"{file} is no folder and no csv file; {ADVICE}")
    table, notes = _with_columns(file, required, split_column, missing)
    labels = [table.columns[name].astype(str) for name in required[2:]]
    found = targets(
        labels[0] if one_label else np.stack(labels, axis=1),
        file,
        task,
        place=table.place,
        names=required[2:],
    )
    owner = numbers_or_names(table.columns[required[1]], file)
    images = [file.parent / str(name) for name in table.columns[required[0]].tolist()]
    places = [table.place(row) for row in range(len(images))]
    first: dict[pathlib.Path, str] = {}
    for image, place in zip(images, places, strict=True):
        if image in first:
            raise DatasetError(
                f"{file}: {place} names {image.name} once more, after {first[image]}; an image is "
                "one example of one client: remove one of the rows"
            )
        first[image] = place
    return _Files(
        images,
        [f"{place} of {file}: " for place in places],
        found.y,
        found.num_classes,
        owner if owner.dtype.kind in "iu" else owner.astype(str),
        None if split_column is None else check_splits(table, split_column),
        notes + found.notes,
        found.class_names,
    )


def _with_columns(
    file: pathlib.Path, required: Sequence[str], split_column: str | None, missing: str
) -> tuple[Table, tuple[str, ...]]:
    """Return a table that has all columns, without missing files and clients, and notes."""
    table = read_table(file)
    special = [*required, *([split_column] if split_column else [])]
    absent = [name for name in special if name not in table.columns]
    if absent:
        raise DatasetError(f"{file} has no column {absent[0]!r}, only {sorted(table.columns)}")
    others = sorted(set(table.columns) - set(special))
    notes: tuple[str, ...] = (f"columns {others} are not read.",) if others else ()
    if missing == "leave_out":
        kept, note = without_missing([table], required)
        if not kept:
            raise DatasetError(f"{file}: no row has a value in all of {list(required)}")
        table, notes = kept[0], notes + note
    for name, what in zip(required, ("file", "client"), strict=False):
        refuse_missing(f"{file}: column {name!r}", table.columns[name], what, table.place)
    return table, notes


def _read_images(files: _Files, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """Return all images, uint8 ``[N, H, W, C]``."""
    x: np.ndarray | None = None
    for i, (file, place) in enumerate(zip(files.images, files.places, strict=True)):
        try:
            pixels = read_pixels(file, channels, size)
        except ValueError as error:
            raise DatasetError(
                f"{place}{file} cannot be read as an image ({error}); replace it, or remove it"
            ) from error
        if x is None:
            # One array: a list of images to be stacked would take their memory twice.
            x = np.zeros((len(files.images), *pixels.shape), np.uint8)
        if pixels.shape[:2] != x.shape[1:3]:
            raise DatasetError(
                f"{place}{file} is {pixels.shape[0]}x{pixels.shape[1]} (height x width), "
                f"{files.images[0]} {x.shape[1]}x{x.shape[2]}; resize all with size=(H, W), "
                f'--config.dataset.size="({x.shape[1]},{x.shape[2]})"'
            )
        if pixels.shape[2] != x.shape[3]:
            kinds = {GREY: "grey", COLOUR: "in colour"}
            raise DatasetError(
                f"{place}{file} is {kinds[pixels.shape[2]]}, {files.images[0]} "
                f"{kinds[x.shape[3]]}; make all grey with channels=1, or all RGB with channels=3"
            )
        x[i] = pixels
    assert x is not None  # there is at least one image
    return x
