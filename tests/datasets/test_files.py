"""Readers on small files in the real formats, whole and damaged."""

import gzip

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError, fashion_files
from pflalign_jax.datasets.fashion_files import load_fashion_mnist
from pflalign_jax.datasets.idx import read_idx


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_fashion(directory, train=5, test=2, **replaced):
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28))
        contents = {
            f"{part}-images-idx3-ubyte.gz": gzip.compress(idx_bytes(images)),
            f"{part}-labels-idx1-ubyte": idx_bytes(np.arange(count) % 10),
        }
        for name, content in contents.items():
            (directory / name).write_bytes(content)


def test_fashion_mnist_pools_train_and_test(tmp_path):
    write_fashion(tmp_path)
    x, y = load_fashion_mnist(tmp_path)
    assert x.shape == (7, 28, 28, 1) and x.dtype == np.uint8
    assert y.tolist() == [0, 1, 2, 3, 4, 0, 1] and y.dtype == np.int32
    expected = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    np.testing.assert_array_equal(x[:5, ..., 0], expected)


@pytest.mark.skipif(
    not fashion_files.DEBIAN_DIRECTORY.is_dir(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_complete():
    data = datasets.fashion_mnist(fraction=0.25)
    assert len(data.y) == 17_500 and data.num_clients == 20
    x, y = load_fashion_mnist()
    assert x.shape == (70_000, 28, 28, 1)
    assert np.bincount(y).tolist() == [7000] * 10


def test_fashion_mnist_through_tfds(monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(fashion_files, "DEBIAN_DIRECTORY", tmp_path / "absent")
    with tfds.testing.mock_data(num_examples=3):
        x, y = load_fashion_mnist()
    assert x.shape == (6, 28, 28, 1) and x.dtype == np.uint8
    assert y.shape == (6,) and y.dtype == np.int32


def test_fashion_mnist_without_any_source(monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(fashion_files, "DEBIAN_DIRECTORY", tmp_path / "absent")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(tfds, "data_source", no_network)
    with pytest.raises(DatasetError, match=r"absent does not exist.*no network.*apt-get install"):
        load_fashion_mnist()


def test_missing_and_damaged_idx_files_are_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere is not a directory"):
        load_fashion_mnist(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"neither train-images-idx3-ubyte nor .* is in"):
        load_fashion_mnist(tmp_path)
    write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(4)))
    with pytest.raises(DatasetError, match=r"\(5, 28, 28\) and labels of shape \(4,\)"):
        load_fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short", idx_bytes(np.zeros((2, 3)))[:-1], "has 17 bytes, .* asks for 18"),
        ("long", idx_bytes(np.zeros((2, 3))) + b"x", "has 19 bytes, .* asks for 18"),
        ("header", bytes([0, 0, 8, 3, 0, 0]), "has 6 bytes"),
        ("png", b"\x89PNG\r\n", "is not an idx file"),
        ("empty", b"", "is not an idx file"),
        ("cut.gz", gzip.compress(idx_bytes(np.zeros((9, 9))))[:-9], "cannot be read"),
        ("not.gz", b"hello there", "cannot be read"),
    ],
)
def test_damaged_idx(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name}.*{message}"):
        read_idx(tmp_path / name)
