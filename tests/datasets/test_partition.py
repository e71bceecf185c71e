import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.partition import (
    dirichlet,
    dirichlet_balanced,
    extended_dirichlet,
    iid,
    lognormal,
    natural,
    pathological,
    shards,
    zipf,
)

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


def assert_partition(parts, num_examples, num_clients, min_size=1):
    assert len(parts) == num_clients
    assert min(map(len, parts)) >= min_size
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    alpha=st.sampled_from([1e-4, 0.01, 0.1, 1.0, 100.0]),
    num_clients=st.integers(1, 60),
    num_classes=st.integers(1, 12),
    min_size=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_dirichlet_is_a_partition_with_a_minimum(alpha, num_clients, num_classes, min_size, seed):
    labels = np.random.default_rng(seed).integers(0, num_classes, 400)
    parts = dirichlet(labels, num_clients, alpha, min_size, seed)
    assert_partition(parts, 400, num_clients, min_size)


def test_dirichlet_ends_where_drawing_again_would_not():
    labels = np.random.default_rng(1).integers(0, 10, 70_000)
    start = time.process_time()
    parts = dirichlet(labels, 500, 0.001, 40, seed=0)
    assert time.process_time() - start < 1
    assert_partition(parts, 70_000, 500, 40)


def test_alpha_sets_the_skew():
    def labels_per_client(alpha):
        parts = dirichlet(LABELS, 10, alpha, 1, seed=0)
        return np.mean([len(np.unique(LABELS[part])) for part in parts])

    assert labels_per_client(0.05) < 5 < labels_per_client(100.0)


def test_pathological_clients_hold_exactly_c_labels():
    for num_clients, c in ((20, 2), (5, 2), (7, 3), (10, 1), (3, 10)):
        parts = pathological(LABELS, num_clients, c, seed=0)
        assert_partition(parts, len(LABELS), num_clients)
        assert {len(np.unique(LABELS[part])) for part in parts} == {c}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    alpha=st.sampled_from([1e-4, 0.01, 0.1, 1.0, 100.0]),
    num_clients=st.integers(1, 60),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_balanced_dirichlet_is_an_even_partition(alpha, num_clients, num_classes, seed):
    labels = np.random.default_rng(seed).integers(0, num_classes, 400)
    parts = dirichlet_balanced(labels, num_clients, alpha, seed)
    assert_partition(parts, 400, num_clients)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_balanced_dirichlet_is_skewed_by_alpha():
    few, many = (
        np.mean([len(np.unique(LABELS[p])) for p in dirichlet_balanced(LABELS, 20, alpha, 0)])
        for alpha in (0.01, 100.0)
    )
    assert few < 3 and many > 9


def test_shards_hold_at_most_a_boundary_more_labels():
    parts = shards(LABELS, 10, 2, seed=0)
    assert_partition(parts, len(LABELS), 10, 200)
    assert max(len(np.unique(LABELS[part])) for part in parts) <= 4


def test_extended_dirichlet_holds_c_labels_in_unequal_sizes():
    parts = extended_dirichlet(LABELS, 10, 3, 0.1, 12, seed=0)
    assert_partition(parts, len(LABELS), 10, 12)
    counts = np.array([np.unique(LABELS[part], return_counts=True)[1] for part in parts])
    assert counts.shape == (10, 3) and counts.min() >= 4
    assert counts.max() > 10 * np.median(counts)


def test_quantity_skew():
    sizes = np.sort([len(part) for part in zipf(LABELS, 5, 1.0, 1, seed=0)])[::-1]
    np.testing.assert_allclose(sizes, 2000 / np.arange(1, 6) / (1 / np.arange(1, 6)).sum(), atol=2)
    parts = lognormal(LABELS, 200, 1.5, 2, seed=0)
    assert_partition(parts, len(LABELS), 200, 2)
    logs = np.log(np.array([len(part) for part in lognormal(np.zeros(10**6), 200, 1.5, 1, 0)]))
    assert abs(logs.std() - 1.5) < 0.2
    assert {len(part) for part in lognormal(LABELS, 10, 0.0, 1, 0)} == {200}


def test_iid_is_even():
    parts = iid(np.zeros(103), 10, seed=0)
    assert_partition(parts, 103, 10)
    assert {len(part) for part in parts} == {10, 11}


def test_natural_keeps_owners_together():
    names, parts = natural(np.array([10, 9, 10, 2]))
    assert names.tolist() == ["2", "9", "10"]
    assert [part.tolist() for part in parts] == [[3], [1], [0, 2]]
    names, parts = natural(np.array(["b", "a", "b"]))
    assert names.tolist() == ["a", "b"] and [p.tolist() for p in parts] == [[1], [0, 2]]


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: dirichlet(LABELS, 10, 0.1, 5, seed),
        lambda seed: pathological(LABELS, 10, 2, seed),
        lambda seed: dirichlet_balanced(LABELS, 10, 0.1, seed),
        lambda seed: extended_dirichlet(LABELS, 10, 2, 0.1, 5, seed),
        lambda seed: shards(LABELS, 10, 2, seed),
        lambda seed: lognormal(LABELS, 10, 1.0, 5, seed),
        lambda seed: zipf(LABELS, 10, 1.0, 5, seed),
        lambda seed: iid(LABELS, 10, seed),
    ],
)
def test_seeded_and_free_of_global_state(draw):
    np.random.seed(1)  # noqa: NPY002
    first, state = draw(3), np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    again, other = draw(3), draw(4)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: dirichlet(LABELS, 10, 0.0, 1, 0), "alpha=0.0"),
        (lambda: dirichlet(LABELS, 10, float("nan"), 1, 0), "alpha=nan"),
        (lambda: dirichlet(LABELS, 10, 0.1, 0, 0), "min_examples=0"),
        (lambda: dirichlet(LABELS, 201, 0.1, 10, 0), "num_clients=201 .* 2010 .* 2000"),
        (lambda: iid(np.zeros(5), 6, 0), "num_clients=6"),
        (lambda: iid(np.zeros(5), 0, 0), "num_clients=0"),
        (lambda: pathological(LABELS, 10, 11, 0), "classes_per_client=11"),
        (lambda: pathological(LABELS, 10, 0, 0), "classes_per_client=0"),
        (lambda: pathological(LABELS, 4, 2, 0), "4 clients with 2 labels"),
        (lambda: extended_dirichlet(LABELS, 100, 2, 0.1, 40, 0), "label . has .* at least 20 each"),
        (lambda: shards(LABELS, 1001, 2, 0), "num_clients=1001 with at least 2"),
        (lambda: zipf(LABELS, 10, 1.0, 0, 0), "min_examples=0"),
        (lambda: pathological(np.array([0, 0, 0, 1]), 4, 1, 0), "label 1 has 1 examples for 2"),
    ],
)
def test_impossible_partitions_are_refused(draw, message):
    with pytest.raises(DatasetError, match=message):
        draw()
