"""Where data come from: files, licence, citation, checksums, and how many examples to expect."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pflalign_jax.datasets.base import DatasetError, Examples


class File(NamedTuple):
    """A file to download.

    Attributes:
      name: what it is called in the dataset's directory.
      url: where it is.
      checksum: ``"md5:..."`` or ``"sha256:..."``; None where the source publishes none.
      megabytes: its approximate size.
    """

    name: str
    url: str
    checksum: str | None
    megabytes: float


class Source(NamedTuple):
    """What is known about a dataset.

    Attributes:
      name: as in `pflalign_jax.datasets` and in configs.
      title: a description in one line.
      homepage: a page about it.
      licence: its terms of use, or ``"not stated"``.
      citation: author, title, place of publication.
      files: what `fetch` downloads; empty where nothing can be downloaded.
      counts: split to number of examples of the complete dataset; ``"all"`` where it has no split.
      classes: number of labels.
      clients: natural owners of the complete dataset; None without owners.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    files: tuple[File, ...]
    counts: Mapping[str, int]
    classes: int
    clients: int | None = None


def data_directory(name: str) -> pathlib.Path:
    """Return the directory that a dataset's files are read from and downloaded to.

    ``$PFLALIGN_DATASETS/NAME``, by default ``~/.cache/pflalign_jax/data/NAME``.
    """
    root = os.environ.get("PFLALIGN_DATASETS", "~/.cache/pflalign_jax/data")
    try:
        return pathlib.Path(root).expanduser() / name
    except RuntimeError as error:
        raise DatasetError(
            f"{root}/{name} cannot be found, as HOME is not set; set it, or PFLALIGN_DATASETS, or "
            "pass dataset.path"
        ) from error


def fetch(source: Source) -> pathlib.Path:
    """Return the directory of a dataset's files, downloading what is missing.

    A file is downloaded whole or not at all. Its checksum is compared, also if it was there before.

    Raises:
      DatasetError: if a file cannot be downloaded or its checksum differs; it names the file, its
        URL, the directory and what to do.
    """
    import pooch  # here, because nothing else needs it

    directory = data_directory(source.name)
    for file in source.files:
        path = directory / file.name
        # Without a checksum there is nothing to compare.
        if path.is_file() and file.checksum is None:
            continue
        try:
            pooch.retrieve(file.url, file.checksum, file.name, directory)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DatasetError(
                f"{source.name}: {file.name} is not in {directory} (or not whole), and downloading "
                f"it from {file.url} failed ({_first_line(error)}). Put the file there yourself "
                f"(about {file.megabytes:g} MB), or pass its place as dataset.path"
            ) from error
    return directory


def checked_counts(source: Source, examples: Examples, where: object) -> Examples:
    """Return the examples, with a note if their number is not that of the complete dataset.

    Only a note, since a part of a dataset may be what the user wants.

    Args:
      source: what to expect.
      examples: what was read.
      where: the file or directory, for the note.
    """
    if examples.split is None:
        counts = {"all": len(examples.y)}
    else:
        counts = {s: int((examples.split == s).sum()) for s in source.counts}
    if counts == dict(source.counts):
        return examples
    complete = ", ".join(f"{n:,} {s}" for s, n in source.counts.items())
    actual = ", ".join(f"{n:,} {s}" for s, n in counts.items())
    note = f"{where} holds {actual} examples; the complete {source.name} has {complete}."
    return examples._replace(notes=(*examples.notes, note))


def _first_line(error: Exception) -> str:
    # The errors of requests quote whole chains of causes.
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def find_file(directory: pathlib.Path, names: Sequence[str], source: Source) -> pathlib.Path:
    """Return the first of ``names`` that is a file in ``directory``.

    Raises:
      DatasetError: if there is none; it names the directory, the files and where to get them.
    """
    for name in names:
        if (directory / name).is_file():
            return directory / name
    origin = f"; get it from {source.files[0].url}" if source.files else ""
    state = "has none of" if directory.is_dir() else "is not a directory with"
    raise DatasetError(f"{source.name}: {directory} {state} {', '.join(names)}{origin}")
