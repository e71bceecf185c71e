"""FEMNIST as TFDS has prepared it: damaged, incomplete and foreign files, and where they go."""

import json
import shutil

import h5py
import numpy as np
import pytest

from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.femnist import load_femnist
from pflalign_jax.datasets.loaders.tff import load_femnist_tff

SHARD = "femnist-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A directory of TFDS with TFF's files where TFDS looks for files put there by hand."""
    root = tmp_path_factory.mktemp("tfds")
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 3)):
        with h5py.File(manual / f"fed_emnist_{split}.h5", "w") as file:
            for client in ("f0001_41", "f0002_00"):
                pixels = rng.integers(0, 256, (count, 28, 28)) / 255
                file[f"examples/{client}/pixels"] = pixels.astype(np.float32)
                file[f"examples/{client}/label"] = rng.integers(0, 62, count).astype(np.int32)
    load_femnist(data_dir=str(root))
    return root


@pytest.fixture
def prepared(data_dir, tmp_path):
    """A copy that a test may damage: the directory of TFDS, and that of the prepared files."""
    shutil.copytree(data_dir / "femnist", tmp_path / "femnist")
    return tmp_path, tmp_path / "femnist" / "all" / "1.0.0"


def by_content(examples):
    rows = zip(examples.split, examples.owner, examples.y, examples.x, strict=True)
    return sorted((str(s), str(o), int(label), x.tobytes()) for s, o, label, x in rows)


def test_files_in_tfds_manual_directory_are_used(data_dir):
    expected = load_femnist_tff(data_dir / "downloads" / "manual")
    found = load_femnist(data_dir=str(data_dir))
    assert by_content(found) == by_content(expected)
    assert (found.x.dtype, found.y.dtype) == (np.uint8, np.int32)
    assert any("complete femnist has 671,585 train" in note for note in found.notes)


def test_tfds_reads_it_by_name(data_dir):
    import tensorflow_datasets as tfds

    rows = tfds.data_source("femnist", split="train", data_dir=str(data_dir))
    assert len(rows) == 80 and rows[0]["image"].dtype == np.uint8
    builder = tfds.builder("femnist", data_dir=str(data_dir))
    assert builder.info.full_name == "femnist/all/1.0.0"
    assert builder.info.features["label"].num_classes == 62


def partition_params(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def zeroed(path):
    content = bytearray(path.read_bytes())
    content[20_000:24_000] = bytes(4000)  # among the images; the end of the file is padding
    path.write_bytes(content)


def without_test_split(path):
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "test"]
    path.write_text(json.dumps(info))


def as_tfrecord(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (SHARD, lambda path: path.unlink()),
        (SHARD, lambda path: partition_params(path, 0)),
        (SHARD, lambda path: partition_params(path, path.stat().st_size - 70_000)),
        (SHARD, zeroed),
        (SHARD, lambda path: shutil.copy(path.parent / SHARD.replace("train", "test"), path)),
        ("dataset_info.json", lambda path: path.unlink()),
        ("dataset_info.json", lambda path: partition_params(path, 300)),
        ("dataset_info.json", without_test_split),
        ("dataset_info.json", as_tfrecord),
    ],
)
def test_damaged_files_are_one_error_that_names_the_directory(prepared, file, damage):
    root, directory = prepared
    damage(directory / file)
    with pytest.raises(DatasetError, match=r"cannot be read .* remove that directory") as error:
        load_femnist(data_dir=str(root))
    assert str(root / "femnist" / "all") in str(error.value)


def test_an_empty_directory_is_not_a_prepared_dataset(prepared):
    root, directory = prepared
    for file in directory.iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="remove that directory"):
        load_femnist(data_dir=str(root))


def test_damaged_sources_leave_nothing_prepared(data_dir, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    shutil.copytree(data_dir / "downloads" / "manual", manual)
    partition_params(manual / "fed_emnist_test.h5", 2000)
    with pytest.raises(DatasetError, match=r"fed_emnist_test\.h5 cannot be read as HDF5"):
        load_femnist(data_dir=str(tmp_path))
    shutil.copy(data_dir / "downloads" / "manual" / "fed_emnist_test.h5", manual)
    assert len(load_femnist(data_dir=str(tmp_path)).y) == 86


def test_a_directory_that_cannot_be_written(data_dir, tmp_path):
    from pflalign_jax.datasets.loaders import femnist_tfds

    (tmp_path / "file").write_text("")
    builder = femnist_tfds.builder_of("all", str(tmp_path / "file" / "deeper"))
    with pytest.raises(DatasetError, match=r"cannot be prepared in .*can be written to"):
        femnist_tfds.prepare(builder, data_dir / "downloads" / "manual")
