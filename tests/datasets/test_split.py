import numpy as np
import pytest

from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.split import split_clients

PARTS = [np.arange(0, 100), np.arange(100, 103), np.arange(103, 105), np.arange(105, 106)]


def sizes(parts):
    return [len(part) for part in parts]


def test_splits_are_disjoint_and_complete_inside_every_client():
    splits = split_clients(PARTS, 0.15, 0.25, seed=0)
    for k, part in enumerate(PARTS):
        mine = [splits[split][k] for split in ("train", "validation", "test")]
        np.testing.assert_array_equal(np.sort(np.concatenate(mine)), part)
    assert sizes(splits["train"]) == [60, 1, 1, 1]
    assert sizes(splits["validation"]) == [15, 1, 0, 0]
    assert sizes(splits["test"]) == [25, 1, 1, 0]


def test_an_unwanted_split_is_empty():
    splits = split_clients(PARTS, 0.0, 0.25, seed=0)
    assert sizes(splits["validation"]) == [0, 0, 0, 0]


def test_a_clients_split_does_not_depend_on_the_others():
    alone = split_clients(PARTS[:1], 0.15, 0.25, seed=0)
    together = split_clients(PARTS, 0.15, 0.25, seed=0)
    np.testing.assert_array_equal(alone["test"][0], together["test"][0])
    other = split_clients(PARTS, 0.15, 0.25, seed=1)
    assert other["test"][0].tolist() != together["test"][0].tolist()


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((-0.1, 0.2), "validation_fraction=-0.1"),
        ((0.1, 1.0), "test_fraction=1.0"),
        ((0.5, 0.5), "validation_fraction=0.5 and test_fraction=0.5"),
    ],
)
def test_impossible_fractions_are_refused(fractions, message):
    with pytest.raises(DatasetError, match=message):
        split_clients(PARTS, *fractions, seed=0)
