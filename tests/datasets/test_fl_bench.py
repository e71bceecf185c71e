"""FL-bench's partitions, written here as its `generate_data.py` writes them."""

import json
import os
import pickle
import struct

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.fl_bench import load_fl_bench

COUNT = 30
ORDER = np.random.default_rng(0).permutation(COUNT)
LABELS = np.arange(COUNT) % 3


def clients():
    """Three clients of ten examples: six to train on, one to choose by in the last, rest test."""
    rows = ORDER.reshape(3, 10)
    held = [(0, 4), (0, 4), (1, 3)]
    return [
        {"train": row[v + t :], "val": row[t : v + t], "test": row[:t]}
        for row, (v, t) in zip(rows, held, strict=True)
    ]


def write(folder, indices=None, y=LABELS, x=None):
    os.makedirs(folder, exist_ok=True)
    partition = {
        "separation": {"train": [0, 1, 2], "val": [0, 1, 2], "test": [0, 1, 2], "total": 3},
        "data_indices": clients() if indices is None else indices,
    }
    with open(folder / "partition.pkl", "wb") as file:
        pickle.dump(partition, file)
    np.save(folder / "data.npy", np.arange(COUNT * 4.0).reshape(COUNT, 4) if x is None else x)
    np.save(folder / "targets.npy", y)
    return str(folder)


def write_stats(folder, y=LABELS):
    stats = {}
    for k, client in enumerate(clients()):
        labels = y[np.concatenate(list(client.values()))].tolist()
        # Labels that a client has not are counted where parts are partitioned in two ways.
        counts = {str(c): labels.count(c) for c in range(4)}
        stats[str(k)] = {"x": len(labels), "y": counts}
    stats["samples_per_client"] = {"mean": 10.0, "stddev": 0.0}
    with open(os.path.join(folder, "all_stats.json"), "w") as file:
        json.dump(stats, file)


@pytest.fixture
def folder(tmp_path):
    path = write(tmp_path / "synthetic")
    write_stats(path)
    return path


def test_clients_and_splits_are_fl_benchs(folder):
    data = datasets.fl_bench(folder)
    assert data.name == "synthetic" and data.client_names.tolist() == ["0", "1", "2"]
    assert data.num_classes == 3 and data.x.dtype == np.float32
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        for k, client in enumerate(clients()):
            mine = data.splits[split].of_client(k)
            np.testing.assert_array_equal(data.x[mine, 0] / 4, client[name])
            np.testing.assert_array_equal(data.y[mine], LABELS[client[name]])
    assert datasets.fl_bench(folder, shape=(2, 2, 1)).x.shape == (30, 2, 2, 1)


def test_no_validation_examples_are_invented(tmp_path):
    indices = [{**c, "train": [*c["train"], *c["val"]], "val": []} for c in clients()]
    path = write(tmp_path / "femnist", indices)
    data = datasets.fl_bench(path)
    assert data.splits["validation"].sizes.tolist() == [0, 0, 0]
    assert any("no validation examples" in note for note in data.notes)
    asked = datasets.fl_bench(path, validation_fraction=0.3)
    assert asked.splits["validation"].sizes.tolist() == [2, 2, 2]
    assert asked.splits["test"].sizes.tolist() == [4, 4, 3]


def test_torchvisions_images_are_numbered_train_first(tmp_path):
    path = write(tmp_path / "mnist")
    os.remove(os.path.join(path, "data.npy"))
    write_stats(path)
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    for name, part in (("train", slice(0, 20)), ("t10k", slice(20, COUNT))):
        header = struct.pack(">4i", 0x803, len(images[part]), 28, 28)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        header = struct.pack(">2i", 0x801, len(images[part]))
        labels = LABELS[part].astype(np.uint8)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    data = datasets.fl_bench(path, data="mnist", data_path=str(tmp_path))
    assert data.num_classes == 10 and data.x.shape == (30, 28, 28, 1)
    for k, client in enumerate(clients()):
        mine = data.splits["test"].of_client(k)
        np.testing.assert_array_equal(data.x[mine, 0, 0, 0], client["test"])
        np.testing.assert_array_equal(data.y[mine], LABELS[client["test"]])
    with pytest.raises(DatasetError, match="data='minst' is unknown; choose from"):
        load_fl_bench(path, data="minst")
    with pytest.raises(DatasetError, match=r"neither data\.npy nor raw/xdata\.npy.*data='cifar10'"):
        load_fl_bench(path)


def test_medical_images(tmp_path):
    path = write(tmp_path / "medmnistA")
    os.mkdir(os.path.join(path, "raw"))
    for old, new in (("data", "xdata"), ("targets", "ydata")):
        os.rename(os.path.join(path, f"{old}.npy"), os.path.join(path, "raw", f"{new}.npy"))
    np.save(os.path.join(path, "raw", "ydata.npy"), LABELS[:, None])
    assert load_fl_bench(path, shape=(2, 2, 1)).x.shape == (30, 2, 2, 1)


def test_data_of_another_order_are_refused(folder):
    np.save(os.path.join(folder, "targets.npy"), LABELS[::-1] ** 2 % 3)
    with pytest.raises(DatasetError, match=r"client 0 has labels .* or their order, are not those"):
        load_fl_bench(folder)
    with open(os.path.join(folder, "all_stats.json"), "w") as file:
        file.write("{")
    with pytest.raises(DatasetError, match=r"all_stats\.json is not FL-bench's"):
        load_fl_bench(folder)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_partition_is_refused_and_does_not_run(tmp_path):
    made = tmp_path / "made"
    path = write(tmp_path / "mnist", [{"train": Runs(str(made)), "val": [], "test": []}])
    with pytest.raises(DatasetError, match=r"partition\.pkl is a pickle that uses \w+\.mkdir"):
        load_fl_bench(path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"indices": [{"train": [0, 1], "val": [], "test": [1]}]}, "gives example 1 to two"),
        ({"indices": [{"train": [0, 30], "test": [1]}]}, "has example 30, the data have 30"),
        ({"indices": [{"train": [0, -1], "test": [1]}]}, "has example -1, the data have 30"),
        ({"indices": [{"train": [0.5], "test": [1]}]}, "client 0 has indices of train of type flo"),
        ({"indices": [[0, 1]]}, "client 0 has no indices of train and test"),
        ({"indices": []}, r"partition\.pkl has no list data_indices; it is not FL-bench's"),
        ({"y": LABELS[:5]}, r"data\.npy has shape \(30, 4\) and targets\.npy \(5,\)"),
        ({"x": np.full((30, 4), np.nan)}, r"data\.npy: example 0 has NaN"),
        ({"x": np.full((30, 4), "a")}, r"data\.npy is <U1; it must be of numbers"),
    ],
)
def test_bad_contents_are_named(tmp_path, written, message):
    with pytest.raises(DatasetError, match=message):
        load_fl_bench(write(tmp_path / "synthetic", **written))


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere/partition\.pkl does not exist; FL-bench's"):
        load_fl_bench(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"of 4 numbers; shape \(3, 1\) needs 3"):
        load_fl_bench(folder, shape=(3, 1))
    for name, message in (("data.npy", "npy without pickle"), ("partition.pkl", "as a pickle")):
        file = os.path.join(folder, name)
        os.truncate(file, os.path.getsize(file) // 2)
        with pytest.raises(DatasetError, match=rf"{name} cannot be read {message}|{message}"):
            load_fl_bench(folder)


def test_clients_without_training_examples_are_named(tmp_path):
    """As of FL-bench's split=user, which holds clients out."""
    indices = [*clients()[:2], {"train": [], "val": [], "test": ORDER[20:]}]
    with pytest.raises(DatasetError, match="1 clients have no training example, the first is '2'"):
        datasets.fl_bench(write(tmp_path / "users", indices))
    anew = datasets.fl_bench(str(tmp_path / "users"), source_split=False, num_new_clients=1)
    assert anew.num_clients == 2 and anew.new_clients.num_clients == 1
