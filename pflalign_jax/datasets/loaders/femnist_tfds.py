"""FEMNIST as a TFDS builder: importing this module registers ``"femnist"``.

Neither preparing nor reading needs TensorFlow: files are in TFDS's ``array_record`` format, and
``tfds.data_source("femnist", split="train")`` prepares and reads them. ``tfds.load`` makes a
`tf.data` pipeline of the same files, and needs TensorFlow, as for every dataset.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.characters import CHARACTERS
from pflalign_jax.datasets.loaders.sources import checked_counts, fetch
from pflalign_jax.datasets.loaders.tff import FEMNIST, FEMNIST_DIGITS, STEMS, load_femnist_tff

SOURCES = {"all": FEMNIST, "digits": FEMNIST_DIGITS}

DAMAGED = (KeyError, ValueError, RuntimeError, OSError, ParseError)
"""What TFDS raises for prepared files that are damaged, incomplete or in another format."""

ROWS_AT_ONCE = 4096
"""Rows that are read at a time: one call per row is slow, all at once need twice the memory."""


class Femnist(tfds.core.GeneratorBasedBuilder):
    """FEMNIST by writer, from TFF's HDF5 files.

    Configs: ``all`` (62 classes) and ``digits`` (10). The files are taken from TFDS's
    ``manual_dir`` if they are there (TFF's archive, or the two .h5 files), and downloaded with a
    checksum otherwise.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Nothing is needed where the network allows. Otherwise put fed_emnist.tar.bz2 (digits: "
        "fed_emnist_digitsonly.tar.bz2), or the two .h5 files in it, into manual_dir."
    )
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's way)
        tfds.core.BuilderConfig(name="all", description="Digits and letters, 62 classes."),
        tfds.core.BuilderConfig(name="digits", description="Digits only, 10 classes."),
    ]

    def __init__(self, *, file_format: Any = "array_record", **options: Any):
        # A format that TFDS reads and writes without TensorFlow.
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        source = SOURCES[self.builder_config.name]
        features = {
            "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=source.classes),
            "client": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.title}. Licence: {source.licence}.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=source.homepage,
            citation=source.citation,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        variant = self.builder_config.name
        try:
            directory = pathlib.Path(dl_manager.manual_dir)
            has_files = _has_tff_files(directory, STEMS[variant])
        except AssertionError:  # TFDS raises it if manual_dir does not exist or is empty
            has_files = False
        examples = load_femnist_tff(directory if has_files else fetch(SOURCES[variant]), variant)
        return {split: self._generate_examples(examples, split) for split in ("train", "test")}

    def _generate_examples(self, examples: Examples, split: str) -> Iterator[tuple[str, dict]]:
        assert examples.owner is not None
        for i in np.flatnonzero(examples.split == split).tolist():
            client = str(examples.owner[i])
            # TFDS orders examples by a hash of this key, which has to differ between them.
            yield (
                f"{client}/{i}",
                {
                    "image": examples.x[i],
                    "label": int(examples.y[i]),
                    "client": client,
                },
            )


def builder_of(variant: str, data_dir: str | None) -> Femnist:
    """Return the builder of a variant; ``data_dir`` None is TFDS's own default.

    Raises:
      DatasetError: if the prepared files are damaged or in another file format.
    """
    try:
        return Femnist(config=variant, data_dir=data_dir)
    except DAMAGED as error:
        where = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR) / "femnist" / variant
        raise _damaged(where, error) from error


def manual_directory(builder: Femnist) -> pathlib.Path | None:
    """Return TFDS's own ``DATA_DIR/downloads/manual`` if TFF's files are there, else None."""
    directory = pathlib.Path(builder.data_path).parents[2] / "downloads" / "manual"
    return directory if _has_tff_files(directory, STEMS[builder.builder_config.name]) else None


def prepare(builder: Femnist, directory: pathlib.Path) -> None:
    """Prepare the dataset from TFF's files in ``directory``.

    Raises:
      DatasetError: if those files are damaged, or the prepared ones cannot be written.
    """
    try:
        builder.download_and_prepare(
            # No look at Google's bucket of prepared datasets, which does not have this one.
            download_config=tfds.download.DownloadConfig(
                manual_dir=directory, try_download_gcs=False
            )
        )
    except OSError as error:
        raise DatasetError(
            f"femnist: cannot be prepared in {builder.data_path} ({error}); pass a "
            "dataset.data_dir that can be written to and has 1 GB of room"
        ) from error


def read(builder: Femnist) -> Examples:
    """Read a prepared dataset, in blocks.

    Raises:
      DatasetError: naming the directory, if its files are damaged or incomplete.
    """
    source = SOURCES[builder.builder_config.name]
    try:
        data = {split: builder.as_data_source(split) for split in ("train", "test")}
        sizes = [len(rows) for rows in data.values()]
        x = np.empty((sum(sizes), 28, 28, 1), np.uint8)
        y, owners, filled = np.empty(len(x), np.int32), [], 0
        for rows in data.values():
            for start in range(0, len(rows), ROWS_AT_ONCE):
                chosen = range(start, min(start + ROWS_AT_ONCE, len(rows)))
                block = rows.__getitems__(list(chosen))
                end = filled + len(block)
                np.stack([row["image"] for row in block], out=x[filled:end])
                y[filled:end] = [row["label"] for row in block]
                owners.append(np.array([row["client"].decode() for row in block]))
                filled = end
    except DAMAGED as error:
        raise _damaged(builder.data_path, error) from error
    split = np.repeat(list(data), sizes)
    owner, names = np.concatenate(owners), CHARACTERS[: source.classes]
    examples = Examples("femnist", x, y, source.classes, owner, split, class_names=names)
    return checked_counts(source, examples, builder.data_path)


def _has_tff_files(directory: pathlib.Path, stem: str) -> bool:
    """Tell whether TFF's files or their archive are in a directory."""
    return any((directory / name).is_file() for name in (f"{stem}_train.h5", f"{stem}.tar.bz2"))


def _damaged(where: object, error: Exception) -> DatasetError:
    return DatasetError(
        f"femnist: what TFDS has prepared in {where} cannot be read ({type(error).__name__}: "
        f"{error}); remove that directory, and it is prepared again in TFDS's array_record format"
    )
