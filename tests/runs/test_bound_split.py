"""What is kept for bounds is drawn at random, and no run looks at it."""

import json

import jax
import numpy as np
import pytest

from pflalign_jax import algorithms, datasets, federate, models, runs
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.queries import client_label_counts
from pflalign_jax.datasets.split import SPLIT_BY, draw_bound
from pflalign_jax.runs import loop
from pflalign_jax.runs.config import default_config

RNG = np.random.default_rng(0)
POOL = Examples(
    "pool", RNG.normal(size=(240, 5)).astype(np.float32), RNG.integers(0, 3, 240).astype("int32"), 3
)


def all_owned(data):
    groups = [data] + ([data.new_clients] if data.new_clients else [])
    owned = [o for g in groups for o in (*g.splits.values(), g.bound) if o is not None]
    return np.sort(np.concatenate([o.indices for o in owned]))


def test_a_client_keeps_a_random_part_whatever_the_rest_is_split_by():
    kept = {}
    for by in SPLIT_BY:
        data = partition_examples(
            POOL,
            num_clients=4,
            num_new_clients=2,
            partition="iid",
            bound_fraction=0.25,
            split_by=by,
        )
        assert data.bound.sizes.tolist() == [10] * 4
        assert data.new_clients.bound.sizes.tolist() == [10] * 2
        assert data.splits["test"].sizes.tolist() == [8] * 4  # a quarter of the 30 others
        np.testing.assert_array_equal(all_owned(data), np.arange(240))
        kept[by] = data.bound.indices.tolist()
    assert kept["stratified"] == kept["random"] == kept["temporal"]
    counted = partition_examples(POOL, num_clients=4, bound_count=3)
    assert counted.bound.sizes.tolist() == [3] * 4
    assert datasets.select_clients(counted, np.array([2])).bound.sizes.tolist() == [3]
    assert datasets.dataset_summary(counted)["bound"] == 12


def test_one_example_always_stays():
    kept, rest = draw_bound([np.array([7]), np.array([3, 1])], 0.5, seed=0)
    assert [len(k) for k in kept] == [0, 1] and [len(r) for r in rest] == [1, 1]


def test_of_a_split_that_came_with_the_data_it_is_a_part_of_the_training_examples():
    split = np.where(np.arange(240) % 4 == 0, "test", "train")
    owned = POOL._replace(owner=np.repeat([f"o{k}" for k in range(6)], 40), split=split)
    data = partition_examples(owned, bound_fraction=0.2)
    assert (split[data.bound.indices] == "train").all()
    assert data.bound.sizes.tolist() == [6] * 6 and data.splits["test"].sizes.tolist() == [10] * 6


def test_nothing_is_kept_unless_asked_for():
    plain, none = (partition_examples(POOL, **o) for o in ({}, {"bound_count": 0}))
    assert plain.bound is None and none.bound is None
    assert datasets.partition_hash(plain) == datasets.partition_hash(none)
    some = partition_examples(POOL, bound_fraction=0.1)
    assert datasets.partition_hash(some) != datasets.partition_hash(plain)


def test_a_partition_file_remembers_what_is_kept(tmp_path):
    data = partition_examples(POOL, num_clients=4, num_new_clients=1, bound_fraction=0.2)
    datasets.save_partition(tmp_path / "partition.npz", data)
    again = partition_examples(POOL, partition_file=str(tmp_path / "partition.npz"))
    for a, b in ((data, again), (data.new_clients, again.new_clients)):
        np.testing.assert_array_equal(a.bound.indices, b.bound.indices)
        np.testing.assert_array_equal(a.bound.offsets, b.bound.offsets)
    assert datasets.partition_hash(again) == datasets.partition_hash(data)


@pytest.mark.parametrize("options", [{"bound_fraction": 1.0}, {"bound_count": -1}])
def test_impossible_amounts_are_refused(options):
    (name, value) = next(iter(options.items()))
    with pytest.raises(DatasetError, match=f"{name}={value} is not allowed"):
        partition_examples(POOL, **options)


def config_of(path):
    config = default_config()
    config.rounds, config.eval_every, config.checkpoint_every = 2, 1, 0
    config.dataset.name, config.dataset.path = "npz", str(path)
    config.dataset.partition, config.dataset.num_clients = "iid", 4
    config.dataset.num_new_clients, config.dataset.bound_fraction = 2, 0.3
    config.dataset.normalise = "train"
    config.dataset.update({"feature_shift": "brightness", "feature_shift_strength": 0.1})
    config.model.name, config.model.hidden = "mlp", (4,)
    config.algorithm.learning_rate, config.diagnostics = 0.3, True
    return config


def results(workdir, config):
    outcome = runs.run(config, workdir, say=lambda text: None)
    timing = ("second", "matmul_peak")
    rows = [
        {k: v for k, v in row.items() if not any(word in k for word in timing)}
        for row in outcome.rows
    ]
    about = json.loads((workdir / "data.json").read_text())
    # These tell data apart: they are to change.
    for name in ("partition_hash", "features_crc32"):
        del about[name]
    return rows, (workdir / "clients.csv").read_text(), about


def poison(x, y, kept):
    x, y = x.copy(), y.copy()
    x[kept], y[kept] = 1e4 + 1e4 * x[kept], (y[kept] + 1) % 3
    return x, y


def test_no_round_and_no_score_reads_what_is_kept():
    """The short form of the next one: one round, on one device."""
    options = dict(
        {"partition": "iid", "num_clients": 3, "num_new_clients": 1, "bound_fraction": 0.3},
        **{"feature_shift": "contrast", "feature_shift_strength": 0.1, "normalise": "train"},
    )
    data = partition_examples(POOL, **options)
    kept = np.concatenate([data.bound.indices, data.new_clients.bound.indices])
    x, y = poison(POOL.x, POOL.y, kept)
    found = []
    for examples in (POOL, POOL._replace(x=x, y=y)):
        data = partition_examples(examples, **options)
        model = models.mlp(3, hidden=(8,))
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))
        federation = federate(algorithms.fedavg(model, 0.1), model, data, mesh=mesh)
        state, _ = federation.run_round(federation.init(jax.random.key(0)))
        scores = {**federation.evaluate(state), **federation.evaluate_new(state)}
        found.append(
            (state.server, {k: v.values for k, v in scores.items()},
             data.mean, data.std, data.shift.low, client_label_counts(data)),
        )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_no_path_of_a_run_reads_what_is_kept(tmp_path, monkeypatch):
    """Values that would change every number change no bit."""
    monkeypatch.setattr(loop, "matmul_peak", lambda: 1e11)
    x, y = POOL.x, POOL.y
    np.savez(tmp_path / "data.npz", x=x, y=y, client=np.zeros(240, int))
    config = config_of(tmp_path / "data.npz")
    found = results(tmp_path / "clean", config)
    data = runs.build.build_dataset(runs.config.resolve(config))
    kept = np.concatenate([data.bound.indices, data.new_clients.bound.indices])
    x, y = poison(x, y, kept)
    np.savez(tmp_path / "data.npz", x=x, y=y, client=np.zeros(240, int))
    poisoned = results(tmp_path / "poisoned", config)
    jax.tree.map(np.testing.assert_array_equal, found, poisoned)
    # The same values anywhere else do change them.
    x[data.splits["train"].indices[0]] += 1e4
    np.savez(tmp_path / "data.npz", x=x, y=y, client=np.zeros(240, int))
    assert results(tmp_path / "other", config)[0] != found[0]
