import os
import pathlib

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError


def arrays(count=12, **replaced):
    rng = np.random.default_rng(count)
    values = {
        "x": rng.integers(0, 256, (count, 4, 4), dtype=np.uint8),
        "y": np.arange(count) % 3,
        "client": np.array(["ann", "bob", "cyd"])[np.arange(count) % 3],
    }
    values.update(replaced)
    return {name: value for name, value in values.items() if value is not None}


@pytest.fixture
def pair(tmp_path):
    """Return a function that writes train.npz and test.npz and returns their directory."""

    def write(train=None, test=None):
        np.savez(tmp_path / "train.npz", **arrays(12, **(train or {})))
        np.savez(tmp_path / "test.npz", **arrays(6, **(test or {})))
        return tmp_path

    return write


def test_natural_clients_keep_the_given_test_split(pair):
    data = datasets.npz(str(pair()), validation_fraction=0.25)
    assert data.client_names.tolist() == ["ann", "bob", "cyd"]
    assert {s: owned.sizes.tolist() for s, owned in data.splits.items()} == {
        "train": [3, 3, 3],
        "validation": [1, 1, 1],
        "test": [2, 2, 2],
    }
    assert (data.splits["test"].indices >= 12).all()
    assert data.x.shape == (18, 4, 4, 1) and data.num_classes == 3
    assert (data.mean, data.std) == (127.5, 127.5)
    for k, name in enumerate(data.client_names):
        owned = data.splits["train"]
        mine = owned.indices[owned.offsets[k] : owned.offsets[k + 1]]
        assert set(mine % 3) == {["ann", "bob", "cyd"].index(name)}


def test_one_file_with_its_own_validation_split(tmp_path):
    split = np.array(["train"] * 6 + ["validation"] * 3 + ["test"] * 3)
    np.savez(tmp_path / "all.npz", **arrays(12, split=split, x=np.ones((12, 5))))
    data = datasets.npz(str(tmp_path / "all.npz"), validation_fraction=0.9)
    assert {s: owned.sizes.tolist() for s, owned in data.splits.items()} == {
        "train": [2, 2, 2],
        "validation": [1, 1, 1],
        "test": [1, 1, 1],
    }
    assert data.x.dtype == np.float32 and (data.mean, data.std) == (0, 1)
    assert data.name == "all"


def test_other_partitions_pool_all_examples(pair):
    data = datasets.npz(str(pair()), num_clients=2, partition="iid", test_fraction=0.5)
    assert sum(len(owned.indices) for owned in data.splits.values()) == 18
    assert data.client_names.tolist() == ["0", "1"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"client": None}, {}, r"train.npz has no array 'client', only \['x', 'y'\]"),
        ({}, {"y": None}, r"test.npz has no array 'y'"),
        ({"y": np.arange(11)}, {}, "x has 12 examples, y has 11"),
        ({"y": np.arange(12) / 2}, {}, "label at example 1 is 0.5.*12 different.*regression"),
        ({"y": np.arange(12) - 3}, {}, "label -3 at example 0 is negative"),
        ({"y": np.ones((12, 2), int)}, {}, r"y has shape \(12, 2\)"),
        (
            {"x": np.full((12, 2), np.nan)},
            {"x": np.ones((6, 2))},
            "12 examples have NaN or infinite features",
        ),
        (
            {"x": np.array([["a"]] * 12)},
            {"x": np.array([["a"]] * 6)},
            "x is <U1; it must be of numbers",
        ),
        ({}, {"x": np.ones((6, 5), np.uint8)}, r"\(4, 4\) in train.npz and .*\(5,\) in test"),
        ({}, {"client": np.arange(6)}, "client is <U3 in train.npz and int64 in test.npz"),
        ({}, {"client": np.array(["ann", "zoe", "bob"] * 2)}, r"1 clients have no training.*: zoe"),
        (
            {"x": np.ones((0, 4)), "y": np.ones(0, int), "client": np.ones(0, int)},
            {},
            "no examples",
        ),
        ({"y": np.array([None] * 12)}, {}, "without pickle"),
    ],
)
def test_bad_contents_are_named(pair, train, test, message):
    with pytest.raises(DatasetError, match=message):
        datasets.npz(str(pair(train, test)))


def test_label_outside_the_stated_range(pair):
    with pytest.raises(
        DatasetError, match=r"label 2 at example 2 \(client \'cyd\'\) is outside 0..1"
    ):
        datasets.npz(str(pair()), num_classes=2)


def test_the_first_nan_is_named(pair):
    x = np.ones((12, 2))
    x[7, 1] = np.inf
    with pytest.raises(DatasetError, match=r"1 examples .* the first is example 7"):
        datasets.npz(str(pair({"x": x}, {"x": np.ones((6, 2))})))


@pytest.mark.parametrize("mapped", [False, True], ids=["npz", "npy"])
def test_without_a_split_clients_are_split_as_asked(tmp_path, mapped):
    plain = arrays(40, client=np.arange(40) // 20, x=np.ones((40, 5), np.float32))
    if mapped:
        path = tmp_path
        for name, value in plain.items():
            np.save(tmp_path / f"{name}.npy", value)
    else:
        path = tmp_path / "all.npz"
        np.savez(path, **plain)
    data = datasets.npz(str(path), validation_fraction=0.1, test_fraction=0.25)
    assert [data.splits[s].sizes.tolist() for s in ("train", "validation", "test")] == [
        [13, 13], [2, 2], [5, 5],
    ]  # fmt: skip


def test_unknown_split_value(tmp_path):
    np.savez(tmp_path / "all.npz", **arrays(12, split=np.array(["train"] * 11 + ["dev"])))
    with pytest.raises(DatasetError, match="split has the value 'dev'"):
        datasets.npz(str(tmp_path / "all.npz"))


def test_missing_and_damaged_files(tmp_path, pair):
    with pytest.raises(DatasetError, match="nowhere does not exist; data are"):
        datasets.npz(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"train\.npz does not exist"):
        datasets.npz(str(tmp_path))
    path = pair() / "test.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"test\.npz cannot be read as npz"):
        datasets.npz(str(tmp_path))
    path.write_bytes(b"hello")
    with pytest.raises(DatasetError, match=r"test\.npz cannot be read as npz"):
        datasets.npz(str(tmp_path))


def test_no_more_clients_than_owners(pair):
    with pytest.raises(DatasetError, match=r"has 3 natural owners .* 5 clients are wanted"):
        datasets.npz(str(pair()), num_clients=5)


def test_writers():
    """Real handwriting by writer, where PFLALIGN_DATA names the directory that holds it."""
    root = os.environ.get("PFLALIGN_DATA")
    if not root or not (pathlib.Path(root) / "nist_writers").is_dir():
        pytest.skip("PFLALIGN_DATA names no directory with nist_writers")
    data = datasets.npz(str(pathlib.Path(root) / "nist_writers"))
    assert data.num_clients == 834 and data.num_classes == 10
    assert len(data.splits["test"].indices) == 6995
    assert sum(len(data.splits[split].indices) for split in ("train", "validation")) == 62_988


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a directory of npy files and returns it."""

    def write(**replaced):
        split = np.array(["train"] * 6 + ["validation"] * 3 + ["test"] * 3)
        x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
        for name, value in arrays(12, **{"split": split, "x": x, **replaced}).items():
            np.save(tmp_path / f"{name}.npy", value)
        return tmp_path

    return write


def test_a_directory_of_npy_files_is_memory_mapped(folder, tmp_path_factory):
    path = folder()
    data = datasets.npz(str(path))
    assert isinstance(data.x, np.memmap)
    one = tmp_path_factory.mktemp("one") / "all.npz"
    np.savez(one, **{p.stem: np.load(p) for p in path.iterdir()})
    same = datasets.npz(str(one))
    np.testing.assert_array_equal(data.x, same.x)
    assert datasets.partition_hash(data) == datasets.partition_hash(same)
    images = datasets.npz(str(folder(x=np.zeros((12, 4, 4), np.uint8))))
    assert images.x.shape == (12, 4, 4, 1)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x": np.zeros((12, 5))}, "x.npy is float64.*write it as float32"),
        ({"x": np.full((12, 5), np.inf, np.float32)}, "12 examples have NaN or infinite"),
        ({"client": None}, r"client.npy does not exist"),
        ({"y": np.arange(11)}, "x has 12 examples, y has 11"),
        ({"client": np.array([{}] * 12)}, "client.npy cannot be read as npy without pickle"),
    ],
)
def test_bad_npy_files_are_named(folder, replaced, message):
    with pytest.raises(DatasetError, match=message):
        datasets.npz(str(folder(**replaced)))


@pytest.mark.parametrize("exists", [True, False])
def test_a_table_is_read_by_another_loader(tmp_path, exists):
    path = tmp_path / "data.csv"
    if exists:
        path.write_text("x,y,client\n1,0,ann\n")
    with pytest.raises(DatasetError, match=r"data\.csv .*csv, parquet.* by .*dataset\.name=tables"):
        datasets.npz(path)
