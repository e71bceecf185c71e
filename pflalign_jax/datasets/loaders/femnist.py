"""FEMNIST in any of its formats: TFDS, LEAF's json, TFF's HDF5, or npz by writer."""

import pathlib

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.characters import CHARACTERS
from pflalign_jax.datasets.loaders.leaf import is_leaf, load_femnist_leaf, only_digits
from pflalign_jax.datasets.loaders.npz import load_npz
from pflalign_jax.datasets.loaders.sources import fetch
from pflalign_jax.datasets.loaders.tff import FEMNIST, FEMNIST_DIGITS, STEMS, load_femnist_tff

FORMATS = (
    "LEAF's train/*.json and test/*.json, TFF's fed_emnist_train.h5 and fed_emnist_test.h5 (or "
    "fed_emnist.tar.bz2), or train.npz and test.npz with x, y and client"
)


def load_femnist(
    path: str | None = None, variant: str = "all", data_dir: str | None = None
) -> Examples:
    """Read FEMNIST, by writer.

    Args:
      path: a directory or file in LEAF's, TFF's or the npz format; None: the dataset that TFDS has
        prepared in ``data_dir``, which is downloaded and prepared if it is not there.
      variant: ``"all"``, digits and letters, 62 classes, or ``"digits"``, 10 classes.
      data_dir: where TFDS keeps what it has prepared; None: ``$TFDS_DATA_DIR``, or
        ``~/tensorflow_datasets``.

    Raises:
      DatasetError: naming the argument, the file, or all that was tried.
    """
    if variant not in STEMS:
        raise DatasetError(f"femnist: variant={variant!r} is unknown; choose from {tuple(STEMS)}")
    if path is None:
        return _from_tfds(variant, data_dir)
    given, stem = pathlib.Path(path), STEMS[variant]
    if not given.exists():
        raise DatasetError(f"femnist: {given} does not exist; pass {FORMATS}")
    # The format is told by names of files: no user should have to say which one it is.
    if given.is_dir() and is_leaf(given):
        return load_femnist_leaf(path, variant)
    if given.name.endswith(".tar.bz2") or any(
        (given / name).is_file() for name in (f"{stem}_train.h5", f"{stem}.tar.bz2")
    ):
        return load_femnist_tff(given, variant)
    if given.suffix == ".npz" or (given / "train.npz").is_file() or (given / "x.npy").is_file():
        # 62 for digits, too: a file with all labels is read as it is and cut down afterwards.
        examples = load_npz(path, None if variant == "all" else len(CHARACTERS))
        if examples.num_classes == len(CHARACTERS):
            examples = examples._replace(class_names=CHARACTERS)
        return examples if variant == "all" else only_digits(examples)
    other = next((s for s in STEMS.values() if (given / f"{s}_train.h5").is_file()), None)
    hint = f" It holds {other}_train.h5, of the other variant." if other else ""
    raise DatasetError(f"femnist: {given} has none of the known formats: {FORMATS}.{hint}")


def _from_tfds(variant: str, data_dir: str | None) -> Examples:
    """Read what TFDS has prepared; prepare it first where it is not there."""
    # Here, because TFDS takes half a second to import and nothing else needs it.
    from pflalign_jax.datasets.loaders import femnist_tfds

    builder = femnist_tfds.builder_of(variant, data_dir)
    if not pathlib.Path(builder.data_path).is_dir():
        source = FEMNIST if variant == "all" else FEMNIST_DIGITS
        try:
            directory = femnist_tfds.manual_directory(builder) or fetch(source)
        except DatasetError as error:
            raise DatasetError(
                f"femnist: TFDS has nothing prepared in {builder.data_path}, and it could not be "
                f"downloaded. {error}.\nOtherwise pass your own files: --config.dataset.path=PATH "
                f"with {FORMATS}"
            ) from error
        femnist_tfds.prepare(builder, directory)
    return femnist_tfds.read(builder)
