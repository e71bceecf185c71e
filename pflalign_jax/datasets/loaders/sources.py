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
      megabytes: about how large it is.
    """

    name: str
    url: str
    checksum: str | None
    megabytes: float


class Source(NamedTuple):
    """What is known about a dataset.

    Attributes:
      name: as in `pflalign_jax.datasets` and in configs.
      title: what it is, one line.
      homepage: a page about it.
      licence: its terms of use, or ``"not stated"``.
      citation: author, title, where.
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
    """Return where a dataset's files are looked for and downloaded to.

    ``$PFLALIGN_DATASETS/NAME``, by default ``~/.cache/pflalign_jax/data/NAME``.
    """
    root = os.environ.get("PFLALIGN_DATASETS", "~/.cache/pflalign_jax/data")
    return pathlib.Path(root).expanduser() / name


def fetch(source: Source) -> pathlib.Path:
    """Return the directory of a dataset's files, downloading what is missing.

    A file arrives whole or not at all; its checksum is compared, also of a file that was there.

    Raises:
      DatasetError: naming the file, where it should come from, the directory that it was looked
        for in and what to do, if it cannot be downloaded or differs from its checksum.
    """
    import pooch  # late: nothing else needs it

    directory = data_directory(source.name)
    for file in source.files:
        path = directory / file.name
        if path.is_file() and file.checksum is None:
            continue
        try:
            pooch.retrieve(file.url, file.checksum, file.name, directory)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DatasetError(
                f"{source.name}: {file.name} is not in {directory} (or not whole), and downloading "
                f"it from {file.url} failed ({_first_line(error)}). Put the file there yourself "
                f"(about {file.megabytes:g} MB), or pass dataset.path, where it is"
            ) from error
    return directory


def checked_counts(source: Source, examples: Examples, where: object) -> Examples:
    """Return the examples, with a note if they are not as many as the complete dataset has.

    Args:
      source: what to expect.
      examples: what was read.
      where: the file or directory, for the note.
    """
    if examples.split is None:
        found = {"all": len(examples.y)}
    else:
        found = {s: int((examples.split == s).sum()) for s in source.counts}
    if found == dict(source.counts):
        return examples
    wanted = ", ".join(f"{n:,} {s}" for s, n in source.counts.items())
    there = ", ".join(f"{n:,} {s}" for s, n in found.items())
    note = f"{where} holds {there} examples; the complete {source.name} has {wanted}."
    return examples._replace(notes=(*examples.notes, note))


def _first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def found(directory: pathlib.Path, names: Sequence[str], source: Source) -> pathlib.Path:
    """Return the first of ``names`` that is a file in ``directory``.

    Raises:
      DatasetError: naming the directory, what was looked for, and where it can be had.
    """
    for name in names:
        if (directory / name).is_file():
            return directory / name
    origin = f"; it can be had from {source.files[0].url}" if source.files else ""
    state = "has none of" if directory.is_dir() else "is not a directory with"
    raise DatasetError(f"{source.name}: {directory} {state} {', '.join(names)}{origin}")
