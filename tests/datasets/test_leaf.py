"""LEAF's json, TFF's HDF5, and FEMNIST through TFDS, on small files made here."""

import hashlib
import json
import sys
import tarfile

import h5py
import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.femnist import load_femnist
from pflalign_jax.datasets.loaders.leaf import load_femnist_leaf, load_leaf
from pflalign_jax.datasets.loaders.tff import load_femnist_tff

WRITERS = {"f0001_41": 6, "f0002_00": 4, "f0003_07": 5}


def writer_images(name, split):
    """Return uint8 images and labels of a writer; every other label is a digit."""
    rng = np.random.default_rng([int(name[1:5]), split == "test"])
    count = WRITERS[name] if split == "train" else 2
    labels = np.where(np.arange(count) % 2 == 0, rng.integers(0, 10, count), 61)
    return rng.integers(0, 256, (count, 28, 28)).astype(np.uint8), labels


def write_leaf(root, split="train", writers=tuple(WRITERS), file="all_data_0_niid", **edit):
    """Write one file as LEAF's preprocessing does; ``edit`` replaces a user's data."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    data = {}
    for name in writers:
        pixels, labels = writer_images(name, split)
        x = [[round(v / 255, 6) for v in image.ravel().tolist()] for image in pixels]
        data[name] = {"x": x, "y": labels.tolist(), **edit.get(name, {})}
    content = {
        "users": list(writers),
        "num_samples": [len(data[name]["y"]) for name in writers],
        "user_data": data,
    }
    path = folder / f"{file}_{split}_9.json"
    path.write_text(json.dumps(content))
    return path


def leaf_folder(root):
    for split in ("train", "test"):
        write_leaf(root, split, ("f0001_41", "f0002_00"), "all_data_0_niid")
        write_leaf(root, split, ("f0003_07",), "all_data_1_niid")
    return root


def tff_folder(root, stem="fed_emnist", only_digits=False):
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with h5py.File(root / f"{stem}_{split}.h5", "w") as file:
            for name in WRITERS:
                pixels, labels = writer_images(name, split)
                kept = labels < 10 if only_digits else labels < 62
                group = file.create_group(f"examples/{name}")
                group["pixels"] = (pixels[kept] / 255).astype(np.float32)
                group["label"] = labels[kept].astype(np.int32)
    return root


def npz_folder(root):
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        parts = [writer_images(name, split) for name in WRITERS]
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        owner = np.repeat(list(WRITERS), [len(part[1]) for part in parts])
        np.savez(root / f"{split}.npz", x=x, y=y, client=owner)
    return root


def by_writer(examples, name, split):
    mine = (examples.owner == name) & (examples.split == split)
    return examples.x[mine][..., 0], examples.y[mine]


@pytest.fixture
def tfds(monkeypatch, tmp_path):
    """TFDS, quiet, with no network and its own directories."""
    found = pytest.importorskip("tensorflow_datasets")
    import requests

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no network")

    found.disable_progress_bar()
    monkeypatch.setenv("PFLALIGN_DATASETS", str(tmp_path / "downloads"))
    monkeypatch.setattr(requests, "get", no_network)
    return found


@pytest.mark.parametrize("write", [leaf_folder, tff_folder])
def test_femnist_is_the_same_in_every_format(tmp_path, write):
    examples = load_femnist(str(write(tmp_path)))
    assert examples.num_classes == 62 and examples.x.dtype == np.uint8
    for name in WRITERS:
        for split in ("train", "test"):
            found, expected = by_writer(examples, name, split), writer_images(name, split)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    data = datasets.femnist(str(tmp_path), validation_fraction=0.2)
    assert data.client_names.tolist() == list(WRITERS)
    assert data.splits["test"].sizes.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "source", [pytest.param("leaf", marks=pytest.mark.slow), "tff",
               pytest.param("tfds", marks=pytest.mark.slow)],
)  # fmt: skip
def test_femnist_from_a_config(tmp_path, source, tfds):
    """The experiment end to end, on small files; for TFDS in its manual directory."""
    from experiments.femnist import get_config
    from pflalign_jax.runs.build import build
    from pflalign_jax.runs.loop import RunPlan, train

    config = get_config()
    if source == "tfds":
        tff_folder(tmp_path / "tfds" / "downloads" / "manual")
        config.dataset.data_dir = str(tmp_path / "tfds")
    else:
        config.dataset.path = str({"leaf": leaf_folder, "tff": tff_folder}[source](tmp_path))
    config.rounds, config.eval_every, config.cohort_size = 1, 1, 2
    config.model.name = "logistic"
    outcome = train(RunPlan(build(config)))
    assert outcome.summary["dataset"]["clients"] == 3
    assert 0 <= outcome.rows[-1]["accuracy/test/personal/adapted/mean"] <= 1


def test_digits_only(tmp_path):
    from_leaf = load_femnist(str(leaf_folder(tmp_path / "leaf")), "digits")
    from_tff = load_femnist(
        str(tff_folder(tmp_path / "tff", "fed_emnist_digitsonly", True)), "digits"
    )
    from_npz = load_femnist(str(npz_folder(tmp_path / "npz")), "digits")
    for examples in (from_leaf, from_tff, from_npz):
        assert examples.num_classes == 10 and examples.y.max() < 10
    for examples in (from_leaf, from_npz):
        np.testing.assert_array_equal(examples.x, from_tff.x)
    with pytest.raises(DatasetError, match=r"digitsonly_train\.h5, of the other variant"):
        load_femnist(str(tmp_path / "tff"), "all")


def test_leafs_users_without_examples_are_left_out_and_noted(tmp_path):
    write_leaf(tmp_path, "train", f0002_00={"x": [], "y": []})
    write_leaf(tmp_path, "test")
    examples = load_leaf(str(tmp_path), (28, 28, 1))
    assert set(examples.owner) == {"f0001_41", "f0003_07"}
    assert "1 users without training examples are left out." in examples.notes
    write_leaf(tmp_path, "test", f0002_00={"x": [], "y": []})
    assert "1 users without examples are left out." in load_leaf(str(tmp_path)).notes


def test_generic_leaf(tmp_path):
    users = {"a": {"x": [[0.5, 2.0], [1.0, 3.0]], "y": [3, 7]}, "b": {"x": [[4.0, 5.0]], "y": [3]}}
    data = {"users": ["a", "b"], "num_samples": [2, 1], "user_data": users}
    (tmp_path / "data" / "all_data").mkdir(parents=True)
    (tmp_path / "data" / "all_data" / "x.json").write_text(json.dumps(data))
    examples = load_leaf(str(tmp_path))
    assert examples.x.tolist() == [[0.5, 2.0], [1.0, 3.0], [4.0, 5.0]]
    assert examples.y.tolist() == [0, 1, 0] and examples.split is None
    assert examples.notes == ("labels mapped: 3 -> 0, 7 -> 1.",)
    assert datasets.leaf(str(tmp_path), test_fraction=0.5).client_names.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"f0001_41": {"x": [[0.5] * 784, [0.5] * 783], "y": [1, 2]}}, "mixed shapes"),
        ({"f0001_41": {"x": [[0.5] * 100], "y": [1]}}, "examples of 100 numbers; shape"),
        ({"f0001_41": {"x": [[0.5] * 784], "y": [1.5]}}, "labels of type float64"),
        ({"f0001_41": {"x": [[0.5] * 784], "y": [62]}}, "labels up to 62"),
        ({"f0001_41": {"x": [[0.5] * 784], "y": [1, 2]}}, "has 1 x, 2 y and num_samples 2"),
    ],
)
def test_bad_leaf_users_are_named(tmp_path, edit, message):
    path = write_leaf(tmp_path, "train", **edit)
    write_leaf(tmp_path, "test")
    with pytest.raises(DatasetError, match=message) as error:
        load_femnist_leaf(str(tmp_path))
    assert ("f0001_41" in str(error.value) and path.name in str(error.value)) or "62" in message


def test_bad_leaf_files_are_named(tmp_path):
    with pytest.raises(DatasetError, match="is not a directory; LEAF's data are"):
        load_leaf(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="no json file in train, test or all_data"):
        load_leaf(str(tmp_path))
    path = write_leaf(tmp_path, "train")
    with pytest.raises(DatasetError, match="test has no json file"):
        load_leaf(str(tmp_path))
    write_leaf(tmp_path, "test")
    write_leaf(tmp_path, "train", ("f0002_00",), "again")
    with pytest.raises(DatasetError, match=r"'f0002_00' is also in .*overlap"):
        load_leaf(str(tmp_path))
    (tmp_path / "train" / "again_train_9.json").write_text(path.read_text()[:300])
    with pytest.raises(DatasetError, match=r"again_train_9\.json cannot be read as json"):
        load_leaf(str(tmp_path))
    (tmp_path / "train" / "again_train_9.json").write_text('{"users": []}')
    with pytest.raises(DatasetError, match="has no 'num_samples'"):
        load_leaf(str(tmp_path))


def test_tffs_archive(tmp_path):
    folder = tff_folder(tmp_path / "files")
    archive = tmp_path / "fed_emnist.tar.bz2"
    with tarfile.open(archive, "w:bz2") as files:
        for path in sorted(folder.iterdir()):
            files.add(path, path.name)
    expected = load_femnist_tff(folder)
    for path in (archive, tmp_path):
        np.testing.assert_array_equal(load_femnist(str(path)).x, expected.x)
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"fed_emnist_train\.h5 cannot be read from"):
        load_femnist(str(archive))


def test_bad_tff_files_are_named(tmp_path):
    folder = tff_folder(tmp_path)
    path = folder / "fed_emnist_test.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(DatasetError, match=r"fed_emnist_test\.h5 cannot be read as HDF5"):
        load_femnist_tff(folder)
    with h5py.File(path, "w") as file:
        file.create_group("other")
    with pytest.raises(DatasetError, match="no clients below 'examples'"):
        load_femnist_tff(folder)
    for pixels, label, message in (
        (np.zeros((2, 28, 27), np.float32), np.zeros(2, int), r"\(2, 28, 27\)"),
        (np.full((2, 28, 28), 2.0, np.float32), np.zeros(2, int), r"pixels outside \[0, 1\]"),
        (np.zeros((2, 28, 28), np.float32), np.full(2, 70), "label 70, above 61"),
    ):
        with h5py.File(path, "w") as file:
            file["examples/f0001_41/pixels"], file["examples/f0001_41/label"] = pixels, label
        with pytest.raises(DatasetError, match=message):
            load_femnist_tff(folder)
    path.unlink()
    with pytest.raises(
        DatasetError, match=r"has none of fed_emnist\.tar\.bz2, fed_emnist_test\.h5"
    ):
        load_femnist_tff(folder)


def test_unknown_formats_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DatasetError, match="none of the known formats: LEAF's train"):
        load_femnist(str(tmp_path))
    with pytest.raises(DatasetError, match=r"does not exist; pass LEAF's train"):
        load_femnist(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="variant='letters' is unknown"):
        load_femnist(str(tmp_path), "letters")


def test_femnist_through_tfds_without_tensorflow(tmp_path, tfds, monkeypatch):
    folder = tff_folder(tmp_path / "downloads" / "femnist")
    archive = folder / "fed_emnist.tar.bz2"
    with tarfile.open(archive, "w:bz2") as files:
        for path in sorted(folder.glob("*.h5")):
            files.add(path, path.name)
            path.unlink()
    from pflalign_jax.datasets.loaders import femnist, tff

    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = tff.FEMNIST._replace(
        files=(tff.FEMNIST.files[0]._replace(checksum=f"sha256:{digest}"),)
    )
    monkeypatch.setattr(femnist, "FEMNIST", source)
    data_dir = str(tmp_path / "tfds")
    examples = load_femnist(data_dir=data_dir)
    for name in WRITERS:
        for split in ("train", "test"):
            found, expected = by_writer(examples, name, split), writer_images(name, split)
            order, wanted = (np.argsort(a[0].sum((1, 2))) for a in (found, expected))
            np.testing.assert_array_equal(found[0][order], expected[0][wanted])
            np.testing.assert_array_equal(found[1][order], expected[1][wanted])
    archive.unlink()  # prepared once, read again without it
    again = load_femnist(data_dir=data_dir)
    np.testing.assert_array_equal(again.x, examples.x)
    rows = tfds.data_source("femnist/all", split="test", data_dir=data_dir)
    assert len(rows) == 6 and rows[0]["image"].shape == (28, 28, 1)
    assert "tensorflow" not in sys.modules


def test_femnist_from_tfds_manual_directory(tmp_path, tfds):
    from pflalign_jax.datasets.loaders.femnist_tfds import Femnist

    folder = tff_folder(tmp_path / "manual", "fed_emnist_digitsonly", only_digits=True)
    builder = Femnist(config="digits", data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
    )
    examples = load_femnist(variant="digits", data_dir=str(tmp_path / "tfds"))
    assert examples.num_classes == 10 and set(examples.owner) == set(WRITERS)


def test_femnist_without_files_and_network_is_one_clear_error(tmp_path, tfds):
    with pytest.raises(DatasetError) as error:
        load_femnist(data_dir=str(tmp_path / "tfds"))
    text = str(error.value)
    for part in ("TFDS has nothing prepared in", str(tmp_path / "tfds"), "fed_emnist.tar.bz2",
                 "storage.googleapis.com/tff-datasets-public", "no network",
                 str(tmp_path / "downloads" / "femnist"), "--config.dataset.path",
                 "LEAF's train/*.json", "train.npz"):  # fmt: skip
        assert part in text, part
