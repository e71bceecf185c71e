import pathlib

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError


def test_digits():
    data = datasets.digits()
    assert data.x.shape == (1797, 8, 8, 1) and data.x.dtype == np.uint8
    assert data.num_clients == 20 and data.num_classes == 10
    every = np.concatenate([owned.indices for owned in data.splits.values()])
    np.testing.assert_array_equal(np.sort(every), np.arange(1797))
    assert min(sum(owned.sizes for owned in data.splits.values())) >= 8
    assert data.x.max() / data.std == 1


@pytest.mark.parametrize("partition", ["iid", "pathological"])
def test_other_partitions(partition):
    data = datasets.digits(num_clients=10, partition=partition)
    counts = {len(np.unique(data.y[part])) for part in np.split(
        data.splits["train"].indices, data.splits["train"].offsets[1:-1])}  # fmt: skip
    assert counts == ({10} if partition == "iid" else {2})


def test_hash_tells_partitions_apart():
    first = datasets.partition_hash(datasets.digits())
    assert first == datasets.partition_hash(datasets.digits())
    assert len(first) == 64
    others = [
        datasets.digits(seed=1),
        datasets.digits(alpha=0.2),
        datasets.digits(test_fraction=0.2),
    ]
    assert len({first, *map(datasets.partition_hash, others)}) == 4


def test_saved_partition_is_what_it_says(tmp_path):
    data = datasets.digits()
    datasets.save_partition(tmp_path / "partition.npz", data)
    assert [path.name for path in tmp_path.iterdir()] == ["partition.npz"]
    with np.load(tmp_path / "partition.npz", allow_pickle=False) as saved:
        assert str(saved["hash"]) == datasets.partition_hash(data)
        assert int(saved["num_examples"]) == 1797
        for split, owned in data.splits.items():
            np.testing.assert_array_equal(saved[f"{split}_indices"], owned.indices)
            np.testing.assert_array_equal(saved[f"{split}_offsets"], owned.offsets)


def test_selected_clients_keep_data_name_and_id():
    data = datasets.digits(num_clients=4)
    moved = datasets.select_clients(data, np.array([2, 0, 3]))
    assert moved.client_names.tolist() == ["2", "0", "3"]
    assert moved.client_ids.tolist() == [2, 0, 3]
    owned, before = moved.splits["test"], data.splits["test"]
    np.testing.assert_array_equal(
        owned.indices[: owned.offsets[1]], before.indices[before.offsets[2] : before.offsets[3]]
    )
    for wrong in ([0, 0, 1], [4], [-1]):
        with pytest.raises(DatasetError, match="not different clients out of 4"):
            datasets.select_clients(data, np.array(wrong))


def test_dataset_summary():
    found = datasets.dataset_summary(datasets.digits())
    assert found["clients"] == 20 and found["name"] == "digits"
    assert found["train"] + found["validation"] + found["test"] == 1797


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "pathologic"}, "'pathologic' is unknown; did you mean 'pathological'"),
        ({"partition": "natural"}, "needs data with owners"),
        ({"test_fraction": 1.5}, "test_fraction=1.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(DatasetError, match=message):
        datasets.digits(**options)


def test_the_table_of_datasets_is_complete():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(datasets.NAMES) | set(datasets.PARTITIONS) == set(rows)
    for name, source in datasets.SOURCES.items():
        assert source.licence and source.citation and source.homepage.startswith("http")
        for count in (*source.counts.values(), source.classes):
            assert f"{count:,}" in rows[name], (name, count)
