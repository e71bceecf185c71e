import inspect

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.partition_examples import PARTITIONS, PartitionOptions

RNG = np.random.default_rng(0)
POOL = Examples(
    "pool",
    RNG.integers(0, 256, (600, 4, 4, 3)).astype(np.uint8),
    RNG.integers(0, 6, 600).astype(np.int32),
    6,
)
OWNED = POOL._replace(
    owner=np.repeat([f"o{i}" for i in range(12)], 50),
    split=np.tile(["train"] * 40 + ["test"] * 10, 12),
)


def members(owned, k):
    return owned.indices[owned.offsets[k] : owned.offsets[k + 1]]


def everything(data):
    groups = [data] + ([data.new_clients] if data.new_clients else [])
    return np.sort(np.concatenate([o.indices for g in groups for o in g.splits.values()]))


def test_the_typed_arguments_are_those_of_partition_examples():
    arguments = {
        k: p for k, p in inspect.signature(partition_examples).parameters.items() if k != "examples"
    }
    assert set(arguments) == set(PartitionOptions.__annotations__)
    for name, annotation in PartitionOptions.__annotations__.items():
        assert arguments[name].annotation == annotation


def test_the_task_of_the_examples_is_that_of_the_dataset():
    data = partition_examples(OWNED._replace(task="classification"), num_new_clients=2)
    assert data.task == data.new_clients.task == "classification"
    assert datasets.select_clients(data, np.array([1, 0])).task == "classification"
    assert partition_examples(POOL).task is None
    with pytest.raises(DatasetError, match=r"task='ranking'.*choose from .*'regression'"):
        partition_examples(POOL._replace(task="ranking"))


def test_several_numbers_of_an_example_are_split_at_random():
    y = RNG.normal(size=(600, 2)).astype(np.float32)
    data = partition_examples(POOL._replace(y=y, num_classes=0), num_clients=3)
    assert data.options["split_by"] == "random"
    last_of_train = members(data.splits["train"], 0)[-1]
    assert members(data.splits["test"], 0)[0] < last_of_train  # temporal ones would come after it


def test_numbers_that_differ_after_the_point_are_other_data():
    y = RNG.normal(size=600).astype(np.float32)
    pool = POOL._replace(y=y, num_classes=0)
    same, other = (
        datasets.partition_hash(partition_examples(p, num_clients=3))
        for p in (pool, pool._replace(y=y + np.float32(1e-3)))
    )
    assert same != other


@pytest.mark.parametrize("partition", [p for p in PARTITIONS if p != "natural"])
def test_every_partition_deals_everything_out(partition):
    data = partition_examples(POOL, partition=partition, num_clients=9, num_new_clients=3)
    np.testing.assert_array_equal(everything(data), np.arange(600))
    assert data.num_clients == 9 and data.new_clients.num_clients == 3
    assert (data.splits["train"].sizes > 0).all()
    assert len(set(data.client_ids) | set(data.new_clients.client_ids)) == 12
    again = partition_examples(POOL, partition=partition, num_clients=9, num_new_clients=3)
    assert datasets.partition_hash(again) == datasets.partition_hash(data)
    other = partition_examples(POOL, partition=partition, num_clients=9, num_new_clients=3, seed=1)
    assert datasets.partition_hash(other) != datasets.partition_hash(data)


def test_partitions_do_not_touch_numpys_global_state():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    partition_examples(POOL, num_clients=9)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_same_on_every_platform():
    """Hashes recorded on one machine; NumPy promises its generators' streams."""
    found = {p: datasets.partition_hash(partition_examples(POOL, partition=p, num_clients=9))[:8]
             for p in ("iid", "dirichlet", "zipf")}  # fmt: skip
    assert found == {"iid": "0eb09b72", "dirichlet": "07efccda", "zipf": "333a79eb"}


def test_natural_owners_keep_their_test_split():
    data = partition_examples(OWNED, validation_fraction=0.1)
    assert data.client_names.tolist() == sorted(set(OWNED.owner.tolist()))
    for split, size in (("train", 36), ("validation", 4), ("test", 10)):
        assert data.splits[split].sizes.tolist() == [size] * 12
    assert (OWNED.split[data.splits["test"].indices] == "test").all()
    anew = partition_examples(OWNED, source_split=False, test_count=7, validation_count=0)
    assert anew.splits["test"].sizes.tolist() == [7] * 12
    assert anew.splits["validation"].sizes.tolist() == [0] * 12
    assert (OWNED.split[anew.splits["test"].indices] == "train").any()


def test_some_natural_owners_and_new_ones():
    data = partition_examples(OWNED, num_clients=5, num_new_clients=4)
    names = set(data.client_names) | set(data.new_clients.client_names)
    assert data.num_clients == 5 and len(names) == 9
    assert names != {f"o{i}" for i in range(9)}  # chosen at random
    new = data.new_clients
    for k, name in enumerate(new.client_names):
        assert (OWNED.owner[members(new.splits["train"], k)] == name).all()
    small = OWNED._replace(owner=np.where(np.arange(600) < 3, "tiny", OWNED.owner))
    kept = partition_examples(small, min_examples=10)
    assert "tiny" not in kept.client_names
    assert kept.notes == ("1 of 13 owners with fewer than 10 examples are left out.",)


def test_a_count_comes_before_a_fraction_of_zero():
    data = partition_examples(POOL, num_clients=3, test_fraction=0.0, test_count=7)
    assert data.splits["test"].sizes.tolist() == [7] * 3


def test_stratified_splits_keep_label_shares():
    data = partition_examples(POOL, num_clients=3, partition="iid", test_fraction=0.25)
    for k in range(3):
        mine = np.concatenate([members(o, k) for o in data.splits.values()])
        share = np.bincount(POOL.y[mine], minlength=6) * 0.25
        found = np.bincount(POOL.y[members(data.splits["test"], k)], minlength=6)
        assert np.abs(found - share).max() < 1.5
    one_class = POOL._replace(y=np.zeros(600, np.int32))
    sizes = partition_examples(one_class, num_clients=3, partition="iid").splits["test"].sizes
    assert sizes.tolist() == [50, 50, 50]


def test_text_is_split_in_time():
    tokens = OWNED._replace(
        x=RNG.integers(0, 6, (600, 8)).astype(np.int32), y=RNG.integers(0, 6, (600, 8)), split=None
    )
    data = partition_examples(tokens)
    for k in range(12):
        train, validation, test = (members(data.splits[s], k) for s in datasets.SPLITS)
        assert train.max() < validation.min() and validation.max() < test.min()
    with pytest.raises(DatasetError, match="split_by='stratified' needs one label per example"):
        partition_examples(tokens, split_by="stratified")


def test_normalisation():
    fixed = partition_examples(POOL, num_clients=3)
    assert (fixed.mean, fixed.std) == (127.5, 127.5)
    train = partition_examples(POOL, num_clients=3, normalise="train")
    x = POOL.x[train.splits["train"].indices].astype(np.float64)
    np.testing.assert_allclose(train.mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(train.std, x.std((0, 1, 2)), rtol=1e-5)
    own = partition_examples(POOL, num_clients=3, mean=(1.0, 2.0, 3.0), std=(4.0,))
    assert own.mean.tolist() == [1, 2, 3] and own.std.tolist() == [4]
    constant = POOL._replace(x=np.full((600, 5), 7, np.float32))
    assert partition_examples(constant, num_clients=3, normalise="train").std.tolist() == [1] * 5


def test_a_saved_partition_is_used_again(tmp_path):
    file = tmp_path / "partition.npz"
    options = {"num_new_clients": 2, "label_shift": "swap"}
    data = partition_examples(POOL, num_clients=9, seed=3, **options)
    datasets.save_partition(file, data)
    again = partition_examples(POOL, partition_file=str(file), seed=3, label_shift="swap")
    assert datasets.partition_hash(again) == datasets.partition_hash(data)
    assert again.new_clients.client_names.tolist() == data.new_clients.client_names.tolist()
    np.testing.assert_array_equal(again.y, data.y)
    for changed, message in (
        (POOL._replace(y=POOL.y[::-1].copy()), "does not fit pool"),
        (POOL._replace(x=POOL.x[:-1], y=POOL.y[:-1]), "made for 600 examples of pool.*has 599"),
    ):
        with pytest.raises(DatasetError, match=message):
            partition_examples(changed, partition_file=str(file), seed=3, label_shift="swap")
    with pytest.raises(DatasetError, match="or the shifts differ"):
        partition_examples(POOL, partition_file=str(file), seed=3)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"partition\.npz cannot be read"):
        partition_examples(POOL, partition_file=str(file))
    with pytest.raises(DatasetError, match=r"nowhere\.npz cannot be read"):
        partition_examples(POOL, partition_file=str(tmp_path / "nowhere.npz"))


def test_a_damaged_partition_is_refused(tmp_path):
    data = partition_examples(POOL, num_clients=9)
    train = data.splits["train"]
    twice = train._replace(indices=np.where(np.arange(len(train.indices)) == 1,
                                            train.indices[0], train.indices))  # fmt: skip
    damaged = data._replace(splits={**data.splits, "train": twice})
    datasets.save_partition(tmp_path / "p.npz", damaged)
    with pytest.raises(DatasetError, match="belongs to two clients"):
        partition_examples(POOL, partition_file=str(tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition": "dirichle"}, "'dirichle' is unknown; did you mean 'dirichlet'"),
        ({"partition": "iid", "alpha": 0.5}, "alpha=0.5 does not go with partition='iid'"),
        ({"partition": "natural"}, "pool has none"),
        ({"partition": "pathological", "num_clients": 20, "min_examples": 50}, "cannot guarantee"),
        ({"num_clients": 2, "num_new_clients": -1}, "num_new_clients=-1"),
        ({"num_clients": 0, "num_new_clients": 2}, "num_clients=0 is not allowed"),
        ({"normalise": "z"}, "normalise='z' is unknown"),
        ({"mean": (1.0,)}, "give both or none"),
        ({"mean": (1.0, 2.0), "std": (1.0,)}, r"mean=\(1.0, 2.0\) has 2 values.*needs 1 or 3"),
        ({"mean": (1.0,), "std": (0.0,)}, "it must be finite and > 0"),
        ({"mean": (1.0,), "std": (1.0,), "normalise": "train"}, "drop one"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"split_by": "label"}, "split_by='label' is unknown"),
        ({"test_count": -1}, "test_count=-1"),
        ({"partition": "shards", "shards_per_client": 0}, "shards_per_client=0"),
        ({"partition": "zipf", "exponent": -1.0}, "exponent=-1.0"),
        ({"partition": "lognormal", "sigma": -1.0}, "sigma=-1.0"),
        ({"partition": "dirichlet_balanced", "alpha": 0.0}, "alpha=0.0"),
        ({"partition": "extended_dirichlet", "min_examples": 0}, "min_examples=0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(DatasetError, match=message):
        partition_examples(POOL, **arguments)


def test_too_many_natural_owners_are_refused():
    with pytest.raises(DatasetError, match=r"12 natural owners .* 13 clients are wanted"):
        partition_examples(OWNED, num_clients=10, num_new_clients=3)
    with pytest.raises(DatasetError, match=r"min_examples=51 leaves none of pool's 12 owners.* 50"):
        partition_examples(OWNED, min_examples=51)
    with pytest.raises(DatasetError, match="num_new_clients=12 of 12"):
        partition_examples(OWNED, num_new_clients=12)
