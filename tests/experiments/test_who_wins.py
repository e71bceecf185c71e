"""The settings of `experiments.who_wins`: every method fits, on files of the real formats."""

import numpy as np
import pytest

from experiments import who_wins
from experiments.compare import comparison

SHAPES = {
    "writers": ((28, 28), 10),
    "intents": ((384,), 150),
    "photographs": ((32, 32, 3), 10),
    "photographs_of_two": ((32, 32, 3), 10),
    "roles": ((80,), 80),
}
"""Setting to the shape of an example and the number of classes of the arrays that it reads."""


def write_arrays(folder, shape, classes, tokens):
    """Write train.npz and test.npz with twelve owners."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 9600), ("test", 2400)):
        y = np.arange(count * 80).reshape(count, 80) % classes if tokens else np.arange(count)
        x = y if tokens else rng.integers(0, 256, (count, *shape))
        y = np.roll(x, -1, axis=1) if tokens else y % classes
        arrays = {"x": x.astype(np.uint8), "y": y.astype(np.int32)}
        np.savez(folder / name, **arrays, client=np.arange(count, dtype=np.int32) % 60)


@pytest.mark.parametrize(
    "setting",
    ["synthetic", *(pytest.param(name, marks=pytest.mark.slow) for name in SHAPES)],
)
def test_all_methods_fit(setting, tmp_path):
    config = who_wins.get_config(setting)
    if setting in SHAPES:
        write_arrays(tmp_path, *SHAPES[setting], tokens=setting == "roles")
        config.dataset.path = str(tmp_path)
    if setting == "writers":
        config.dataset.num_clients = 60
    plans, dataset, _ = comparison.plans_of(config, list(config.compare.algorithms))
    assert set(plans) == set(config.compare.algorithms) >= {"pflalign", "extended", "local"}
    assert dataset.num_clients == config.dataset.num_clients or setting == "synthetic"


def test_unknown_setting():
    with pytest.raises(ValueError, match=r"'nothing' is unknown; choose from .*writers"):
        who_wins.get_config("nothing")
