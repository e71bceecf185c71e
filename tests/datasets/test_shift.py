import jax
import numpy as np
import pytest

from pflalign_jax import algorithms, federate
from pflalign_jax.datasets import DatasetError, digits, features_of
from pflalign_jax.datasets.shift import feature_shift, label_shift, shift_features
from pflalign_jax.models import logistic

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 6, 6, 2)).astype(np.uint8)
NUMBERS = np.arange(300, dtype=np.int32)


def shifted(kind, amount, x=IMAGES, seed=0, low=0.0, high=255.0):
    amounts = np.full(len(x), amount, np.float32)
    return np.asarray(
        shift_features(x, amounts, NUMBERS[: len(x)], np.int32(seed), kind=kind, low=low, high=high)
    )


@pytest.mark.parametrize("turns", [0, 1, 2, -1])
def test_quarter_turns_are_exact(turns):
    np.testing.assert_array_equal(
        shifted("rotation", 90.0 * turns), np.rot90(IMAGES, turns, axes=(1, 2))
    )


def test_contrast_and_brightness_by_hand():
    x = np.array([[[[0], [100], [200]]]], np.uint8)
    assert shifted("contrast", 1.0, x).ravel().tolist() == [0, 72, 255]  # 127.5 + 2 (x - 127.5)
    assert shifted("contrast", -1.0, x).ravel().tolist() == [64, 114, 164]
    assert shifted("brightness", 0.2, x).ravel().tolist() == [51, 151, 251]
    floats = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_allclose(shifted("brightness", 0.5, floats, high=1.0), [[0.5, 1.5]])


def test_noise_is_the_examples_own_and_seeded():
    first = shifted("noise", 0.1).astype(float)
    assert abs((first - IMAGES)[(IMAGES > 100) & (IMAGES < 150)].std() - 25.5) < 2
    np.testing.assert_array_equal(first, shifted("noise", 0.1))
    assert (first != shifted("noise", 0.1, seed=1)).mean() > 0.5
    np.testing.assert_array_equal(shifted("noise", 0.1, IMAGES[:7]), first[:7])


def test_amounts():
    four = feature_shift(IMAGES, 10, "rotation", 180.0, 4, seed=0)
    values, counts = np.unique(four.amounts, return_counts=True)
    assert values.tolist() == [-180, -90, 0, 90] and set(counts.tolist()) == {2, 3}
    own = feature_shift(IMAGES, 200, "noise", 0.3, None, seed=0).amounts
    assert own.min() >= 0 and own.max() < 0.3 and len(np.unique(own)) == 200


def test_label_maps_are_permutations():
    swaps = label_shift(5, 9, "swap", 3, seed=0)
    assert np.array_equal(np.sort(swaps, axis=1), np.tile(np.arange(5), (9, 1)))
    moved = (swaps != np.arange(5)).sum(1)
    assert sorted(moved.tolist()) == [0] * 3 + [2] * 6  # the first of three groups is unchanged
    assert len(np.unique(label_shift(10, 30, "permute", None, seed=0), axis=0)) == 30


def test_labels_of_every_split_follow_their_client():
    plain = digits(num_clients=6, partition="iid", num_new_clients=2)
    data = digits(num_clients=6, partition="iid", num_new_clients=2, label_shift="permute")
    for group, before in ((data, plain), (data.new_clients, plain.new_clients)):
        for k in range(group.num_clients):
            maps = set()
            for split, owned in group.splits.items():
                mine = owned.indices[owned.offsets[k] : owned.offsets[k + 1]]
                np.testing.assert_array_equal(mine, before.splits[split].indices[
                    owned.offsets[k] : owned.offsets[k + 1]])  # fmt: skip
                maps |= set(zip(plain.y[mine].tolist(), data.y[mine].tolist(), strict=True))
            assert len(maps) == 10 == len({new for _, new in maps})


def test_devices_hold_the_shifted_features():
    """Training on shifts made on devices is training on features that were shifted before."""
    data = digits(num_clients=5, feature_shift="rotation", feature_shift_strength=180.0,
                  shift_groups=4)  # fmt: skip
    model = logistic(10)
    algorithm = algorithms.fedavg(model, 0.1)
    on_host = data._replace(x=np.zeros_like(data.x), shift=None)
    for owned in data.splits.values():
        for k in range(5):
            mine = owned.indices[owned.offsets[k] : owned.offsets[k + 1]]
            on_host.x[mine] = features_of(data, k, mine)
    losses = []
    for dataset in (data, on_host):
        for place in ("device", "host"):
            federation = federate(algorithm, model, dataset, client_state_in=place)
            state, _ = federation.run_round(federation.init(jax.random.key(0)))
            losses.append(federation.evaluate(state)["test/personal/adapted"].loss)
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=2e-4)
    unshifted = federate(algorithm, model, data._replace(shift=None))
    state, _ = unshifted.run_round(unshifted.init(jax.random.key(0)))
    assert np.abs(unshifted.evaluate(state)["test/personal/adapted"].loss - losses[0]).max() > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature_shift": "rotated"}, "needs feature_shift_strength"),
        ({"feature_shift": "rotated", "feature_shift_strength": 1.0}, "'rotated' is unknown"),
        ({"feature_shift": "noise", "feature_shift_strength": 0.0}, "strength=0.0"),
        ({"feature_shift_strength": 1.0}, "does nothing without feature_shift"),
        ({"shift_groups": 2}, "does nothing without"),
        ({"label_shift": "turn"}, "label_shift='turn' is unknown"),
        ({"label_shift": "swap", "shift_groups": 99}, r"shift_groups=99 .* 1\.\.20"),
    ],
)
def test_bad_shifts_are_named(arguments, message):
    with pytest.raises(DatasetError, match=message):
        digits(**arguments)
