"""UCI HAR: activities of 30 people from a phone's sensors."""

import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.sources import File, Source, checked_counts, fetch

SOURCE = Source(
    name="uci_har",
    title="Six activities of 30 people, 128 readings of nine sensor signals",
    homepage="https://archive.ics.uci.edu/dataset/240",
    licence="CC BY 4.0",
    citation="Anguita et al., A Public Domain Dataset for Human Activity Recognition Using "
    "Smartphones, ESANN 2013",
    files=(
        File(
            "uci_har.zip",
            "https://archive.ics.uci.edu/static/public/240/"
            "human+activity+recognition+using+smartphones.zip",
            "sha256:c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
            61,
        ),
    ),
    counts={"all": 10_299},
    classes=6,
    clients=30,
)

DAMAGED = (OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged or an encrypted zip file raises."""

FOLDER, INNER_ZIP = "UCI HAR Dataset", "UCI HAR Dataset.zip"
"""The folder of the data, and a zip file with it that some versions have inside their zip file."""

ACTIVITIES = (
    "WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING",
)  # fmt: skip
"""What the classes 1..6 are called in the source."""

SIGNALS = tuple(
    f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"
)


def load_uci_har(path: str | None = None) -> Examples:
    """Read UCI HAR: ``x`` float32 ``[N, 128, 9]``, owners are the subjects 1..30.

    The source's train and test sets have different subjects. They are pooled, and every subject is
    split anew. To score subjects that were not trained on, as the source does, use
    ``num_new_clients``.

    Args:
      path: the zip file (also one with another zip file in it), the folder ``UCI HAR Dataset``, or
        the directory above it; None: ``~/.cache/pflalign_jax/data/uci_har``, downloaded
        if it is not there.

    Raises:
      DatasetError: naming the file that is missing or damaged.
    """
    given = fetch(SOURCE) / SOURCE.files[0].name if path is None else pathlib.Path(path)
    read = _from_zip(given) if given.is_file() else _from_folder(given)
    xs, ys, owners = [], [], []
    for part in ("train", "test"):
        y, owner = (_table(read, f"{part}/{n}_{part}.txt", 1)[:, 0] for n in ("y", "subject"))
        signals = [
            _table(read, f"{part}/Inertial Signals/{signal}_{part}.txt", 128) for signal in SIGNALS
        ]
        # Row i of every file belongs to window i: a row that is missing would shift all after it.
        if {len(a) for a in (y, owner, *signals)} != {len(y)}:
            raise DatasetError(
                f"uci_har: {part} in {given} has files of {sorted({len(a) for a in signals})} "
                f"signals, {len(y)} labels and {len(owner)} subjects; they must be equally long"
            )
        xs.append(np.stack(signals, axis=-1).astype(np.float32))
        ys.append(y)
        owners.append(owner)
    x, y, owner = (np.concatenate(arrays) for arrays in (xs, ys, owners))
    # Files of numbers are read as floats, so 1.5 would become label 0 unnoticed.
    if not set(np.unique(y).tolist()) <= set(range(1, 7)):
        raise DatasetError(
            f"uci_har: {given} has labels {[f'{v:g}' for v in np.unique(y)]}; they are 1..6"
        )
    examples = Examples(
        "uci_har", x, (y - 1).astype(np.int32), 6, owner.astype(np.int32),
        notes=("labels mapped: 1..6 -> 0..5.",), class_names=ACTIVITIES,
    )  # fmt: skip
    return checked_counts(SOURCE, examples, given)


def _table(read: Callable[[str], bytes], name: str, columns: int) -> np.ndarray:
    """Return a file of numbers, float64 ``[N, columns]``."""
    content = read(name)
    if not content.strip():
        raise DatasetError(f"uci_har: {name} is empty; get it again from {SOURCE.files[0].url}")
    try:
        table = np.loadtxt(io.StringIO(content.decode("ascii")), ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise DatasetError(f"uci_har: {name} is not a table of numbers ({error})") from error
    if table.shape[1] != columns or not np.isfinite(table).all():
        raise DatasetError(
            f"uci_har: {name} has shape {table.shape}, or values that are not finite; it must have "
            f"{columns} columns of numbers"
        )
    return table


def _from_folder(given: pathlib.Path) -> Callable[[str], bytes]:
    """Return a reader of the files in the folder, which is the given one or below it."""
    folder = next((f for f in (given, given / FOLDER) if (f / "train").is_dir()), None)
    if folder is None:
        raise DatasetError(
            f"uci_har: {given} is neither a zip file nor a folder with train and test; get it from "
            f"{SOURCE.files[0].url}"
        )

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DatasetError(f"uci_har: {folder / name} cannot be read ({error})") from error

    return read


def _from_zip(file: pathlib.Path) -> Callable[[str], bytes]:
    """Return a reader of the files in a zip file."""
    try:
        archive = zipfile.ZipFile(file)  # stays open for the reader below
        if INNER_ZIP in archive.namelist():
            archive = zipfile.ZipFile(io.BytesIO(archive.read(INNER_ZIP)))
    except DAMAGED as error:
        raise DatasetError(
            f"uci_har: {file} cannot be read as zip ({error}); fetch it again from "
            f"{SOURCE.files[0].url}"
        ) from error

    def read(name: str) -> bytes:
        try:
            return archive.read(f"{FOLDER}/{name}")
        except (KeyError, *DAMAGED) as error:
            raise DatasetError(f"uci_har: {name} cannot be read from {file} ({error})") from error

    return read
