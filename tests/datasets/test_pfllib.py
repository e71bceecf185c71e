"""PFLlib's files, written here as its `save_file` writes them."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.pfllib import load_pfllib

TRAIN, TEST = (6, 9, 3), (2, 3, 1)
"""Examples of three clients."""


def client(count, k, shape=(1, 4, 4)):
    rng = np.random.default_rng([count, k])
    x = rng.uniform(-1, 1, (count, *shape)).astype(np.float32)
    return {"x": x, "y": np.arange(count) % 3}


def write(folder, shape=(1, 4, 4), **config):
    for split, sizes in (("train", TRAIN), ("test", TEST)):
        (folder / split).mkdir(parents=True)
        for k, count in enumerate(sizes):
            np.savez_compressed(folder / split / f"{k}.npz", data=client(count, k, shape))
    (folder / "config.json").write_text(json.dumps({"num_clients": 3, "num_classes": 4} | config))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "MNIST")


def test_clients_and_split_are_pfllibs(folder):
    data = datasets.pfllib(folder)
    assert data.name == "MNIST" and data.client_names.tolist() == ["0", "1", "2"]
    assert data.num_classes == 4 and data.x.shape == (24, 4, 4, 1)
    assert {s: owned.sizes.tolist() for s, owned in data.splits.items()} == {
        "train": [6, 9, 3],
        "validation": [0, 0, 0],
        "test": [2, 3, 1],
    }
    for split, sizes in (("train", TRAIN), ("test", TEST)):
        for k, count in enumerate(sizes):
            mine, there = data.splits[split].of_client(k), client(count, k)
            np.testing.assert_array_equal(data.x[mine, :, :, 0], there["x"][:, 0])
            np.testing.assert_array_equal(data.y[mine], there["y"])
    assert (data.mean, data.std) == (0, 1)  # PFLlib's values are normalised


def test_validation_is_taken_only_where_it_is_asked_for(folder):
    assert any("no validation examples" in note for note in datasets.pfllib(folder).notes)
    data = datasets.pfllib(folder, validation_fraction=0.3)
    assert data.splits["validation"].sizes.tolist() == [2, 3, 1]
    assert data.splits["train"].sizes.tolist() == [4, 6, 2]
    assert data.splits["test"].sizes.tolist() == [2, 3, 1]
    assert not any("no validation examples" in note for note in data.notes)
    assert datasets.pfllib(folder, validation_count=1).splits["validation"].sizes.sum() == 3
    # Pooled and split anew, it is as any other data.
    pooled = datasets.pfllib(folder, source_split=False, validation_fraction=0.1)
    assert pooled.splits["validation"].sizes.tolist() == [1, 1, 1]


def test_sensors_texts_and_sequences(tmp_path):
    signals = load_pfllib(write(tmp_path / "HAR", (9, 1, 16)))
    assert signals.x.shape == (24, 16, 9)
    np.testing.assert_array_equal(signals.x[0, :, 2], client(6, 0, (9, 1, 16))["x"][0, 2, 0])
    tokens = load_pfllib(write(tmp_path / "Shakespeare", (8,)))
    assert tokens.x.shape == (24, 8)
    path = write(tmp_path / "AGNews")
    for split in ("train", "test"):
        for k in range(3):
            pairs = np.array([([k, 7, 0], 3), ([k, 8, 9], 3)], dtype=object)
            np.savez_compressed(
                os.path.join(path, split, f"{k}.npz"), data={"x": pairs, "y": np.array([0, 1])}
            )
    texts = load_pfllib(path)
    assert texts.x.dtype == np.int32 and texts.x[2:4].tolist() == [[1, 7, 0], [1, 8, 9]]


def test_images_of_three_channels_and_those_that_are_turned_already(tmp_path):
    assert load_pfllib(write(tmp_path / "rgb", (3, 8, 8))).x.shape == (24, 8, 8, 3)
    assert load_pfllib(write(tmp_path / "last", (8, 8, 3))).x.shape == (24, 8, 8, 3)
    assert load_pfllib(write(tmp_path / "flat", (60,))).x.shape == (24, 60)


def test_files_of_numpy_1_and_lists(folder):
    """As PFLlib wrote its files until 2024: pickle's protocol 3 and lists."""
    content = {"x": [row for row in client(6, 0)["x"]], "y": client(6, 0)["y"]}
    array = pickle.dumps(np.array(content, object), 3).replace(b"numpy._core", b"numpy.core")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    with zipfile.ZipFile(os.path.join(folder, "train", "0.npz"), "w") as archive:
        archive.writestr("data.npy", header.ljust(127) + b"\n" + array)
    np.testing.assert_array_equal(load_pfllib(folder).x[:6, :, :, 0], client(6, 0)["x"][:, 0])


def test_without_a_config_the_files_count(folder):
    os.remove(os.path.join(folder, "config.json"))
    assert load_pfllib(folder).num_classes == 3
    write_config(folder, {"num_clients": 3})  # as early versions
    assert load_pfllib(folder).num_classes == 3


def write_config(folder, config):
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_refused_and_does_not_run(folder, tmp_path):
    made = tmp_path / "made"
    file = os.path.join(folder, "test", "1.npz")
    np.savez_compressed(file, data={"x": Runs(str(made)), "y": [0]})
    with pytest.raises(DatasetError, match=r"test/1\.npz is a pickle that uses \w+\.mkdir"):
        load_pfllib(folder)
    assert not made.exists()


def ones(count=6, **replaced):
    values = {"x": np.ones((count, 1, 4, 4), np.float32), "y": np.zeros(count, int)}
    return values | replaced


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ones(y=np.zeros(5, int)), r"1\.npz: x has shape \(6, 1, 4, 4\) and y \(5,\)"),
        (ones(y=np.zeros(6)), r"1\.npz: y is float64; labels must be integers"),
        (ones(y=np.full(6, 4)), r"label 4 is outside 0\.\.3, as .*config\.json says"),
        (ones(y=np.full(6, -1)), r"label -1 is outside 0\.\.3"),
        (ones(x=np.full((6, 1, 4, 4), np.nan)), r"1\.npz: example 0 has nan among"),
        (ones(x=np.full((6, 1, 4, 4), 1e300)), r"1\.npz: example 0 has inf among"),
        (ones(x=np.ones((6, 1, 5, 4))), r"1\.npz has examples of shape \(1, 5, 4\), others"),
        (ones(x=["a"] * 6), r"1\.npz: x is not an array of numbers"),
        (ones(x=[[1], [1, 2]], y=np.zeros(2, int)), r"1\.npz: x is not an array of numbers"),
        ({"x": np.ones(3)}, r"1\.npz: data holds \['x'\]; it must be a dict with x and y"),
        ([1, 2], r"1\.npz: data is no pickled dict"),
        (np.array([1, None], object), r"1\.npz: data holds ndarray; it must be a dict"),
    ],
)
def test_bad_contents_are_named(folder, data, message):
    np.savez_compressed(os.path.join(folder, "train", "1.npz"), data=data)
    with pytest.raises(DatasetError, match=message):
        load_pfllib(folder)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    file = os.path.join(folder, "train", "1.npz")
    with open(file, "rb") as whole:
        content = whole.read()
    for cut in (0, 10, len(content) // 2, len(content) - 5):
        with open(file, "wb") as damaged:
            damaged.write(content[:cut])
        with pytest.raises(DatasetError, match=r"train/1\.npz cannot be read as PFLlib's npz"):
            load_pfllib(folder)
    np.savez(file, x=np.ones(3))
    with pytest.raises(DatasetError, match=r"train/1\.npz cannot be read.*PFLlib's data are"):
        load_pfllib(folder)
    os.remove(file)
    with pytest.raises(DatasetError, match="client 1 is in test and not in train"):
        load_pfllib(folder)
    os.remove(os.path.join(folder, "test", "1.npz"))
    with pytest.raises(DatasetError, match=r"config\.json says 3 clients, train has files of 2"):
        load_pfllib(folder)
    write_config(folder, {"clients": 3})
    with pytest.raises(DatasetError, match=r"does not say num_clients.*it is not PFLlib's"):
        load_pfllib(folder)
    with pytest.raises(DatasetError, match=r"nowhere/train has no file 0\.npz.*generate_"):
        load_pfllib(str(tmp_path / "nowhere"))
