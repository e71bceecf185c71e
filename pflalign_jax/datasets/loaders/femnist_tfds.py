"""FEMNIST as a TFDS builder: importing this module makes ``tfds.load("femnist")`` work.

Neither preparing nor reading needs TensorFlow: files are in TFDS's ``array_record`` format, and
``tfds.data_source("femnist", split="train")`` reads them.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pflalign_jax.datasets.base import Examples
from pflalign_jax.datasets.loaders.sources import checked_counts, fetch
from pflalign_jax.datasets.loaders.tff import FEMNIST, FEMNIST_DIGITS, STEMS, load_femnist_tff

SOURCES = {"all": FEMNIST, "digits": FEMNIST_DIGITS}


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
        stem = STEMS[variant]
        try:
            directory = pathlib.Path(dl_manager.manual_dir)
            given = any(
                (directory / name).is_file() for name in (f"{stem}_train.h5", f"{stem}.tar.bz2")
            )
        except AssertionError:  # TFDS's way to say that manual_dir is not there or empty
            given = False
        examples = load_femnist_tff(directory if given else fetch(SOURCES[variant]), variant)
        return {split: self._generate_examples(examples, split) for split in ("train", "test")}

    def _generate_examples(self, examples: Examples, split: str) -> Iterator[tuple[str, dict]]:
        for i in np.flatnonzero(examples.split == split).tolist():
            client = str(examples.owner[i])
            yield (
                f"{client}/{i}",
                {
                    "image": examples.x[i],
                    "label": int(examples.y[i]),
                    "client": client,
                },
            )


def builder_of(variant: str, data_dir: str | None) -> Femnist:
    """Return the builder of a variant; ``data_dir`` None is TFDS's own default."""
    return Femnist(config=variant, data_dir=data_dir)


def prepare(builder: Femnist, directory: pathlib.Path) -> None:
    """Prepare the dataset from TFF's files in ``directory``."""
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=directory, try_download_gcs=False)
    )


def read(builder: Femnist) -> Examples:
    """Read a prepared dataset, in blocks."""
    source = SOURCES[builder.builder_config.name]
    xs, ys, owners, sizes = [], [], [], {}
    for split in ("train", "test"):
        data = builder.as_data_source(split)
        sizes[split] = len(data)
        for start in range(0, len(data), 4096):
            rows = data.__getitems__(list(range(start, min(start + 4096, len(data)))))
            xs.append(np.stack([row["image"] for row in rows]))
            ys.append(np.array([row["label"] for row in rows], np.int32))
            owners.append(np.array([row["client"].decode() for row in rows]))
    x, y, owner = (np.concatenate(arrays) for arrays in (xs, ys, owners))
    split = np.repeat(list(sizes), list(sizes.values()))
    examples = Examples("femnist", x, y, source.classes, owner, split)
    return checked_counts(source, examples, builder.data_path)
