"""Data on which methods differ, with small models; for --config, a setting each.

--config=experiments/who_wins.py:writers --config.dataset.path=DIRECTORY
    NIST's digits by writer as npz, 200 writers with some 20 training examples, 50 of them a round
--config=experiments/who_wins.py:intents --config.dataset.path=DIRECTORY
    train.npz and test.npz with features of requests in 150 classes, as experiments.features writes
    them; 30 clients of 15 classes each
--config=experiments/who_wins.py:synthetic
    FedProx's synthetic(1, 1), 30 clients
--config=experiments/who_wins.py:photographs --config.dataset.path=DIRECTORY
    train.npz and test.npz with 32x32x3 images in 10 classes, 20 clients by Dir(0.1)
--config=experiments/who_wins.py:photographs_of_two --config.dataset.path=DIRECTORY
    the same, 100 clients of two classes each, 10 of them a round
--config=experiments/who_wins.py:roles --config.dataset.path=DIRECTORY
    Shakespeare's next character by role, 60 roles, 10 of them a round

`compare` then says who is best; docs/results.md has what it said.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.when import base
from pflalign_jax.runs import default_config
from pflalign_jax.runs.factories import factory

METHODS = (
    *("local", "fedavg", "fedavgm", "fedadam", "perfedavg", "fedbabu", "fedper", "fedrep"),
    *("fedrod", "fedala", "apfl", "ditto", "feddbe", "pflalign", "extended"),
)
"""The strongest and the best known; `extended` is pFLAlign with our two extensions."""

RECENT = (
    *("ifca", "cfl", "fesem", "fedem", "fedfomo", "apple", "moon", "fedntd", "pfedsim"),
    *("fedcac", "fedas", "fedphp", "knnper", "pfedhn", "fml", "pfedbayes", "fedgh", "superfed"),
)
"""Clusters, mixtures, neighbours, distillation and others; compared on the cheapest data alone."""

SIZES: Mapping[str, Mapping[str, Any]] = {
    "logistic": {},
    "mlp": {"hidden": (100,)},
    "cnn": {"features": (8, 16), "dense": 64},
    "lstm": {"hidden": 64},
}
"""Model to its fields."""


def get_config(setting: str = "synthetic") -> ConfigDict:
    """Return the config of a setting.

    Args:
      setting: one of `SETTINGS`.

    Raises:
      ValueError: for another one.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting {setting!r} is unknown; choose from {list(SETTINGS)}")
    return SETTINGS[setting]()


def writers() -> ConfigDict:
    """Return many writers who have little and differ little."""
    config = _config("mlp", rounds=100, cohort_size=50)
    config.dataset.name, config.dataset.partition = "npz", "natural"
    config.dataset.source_split = False
    # A writer has some 84 examples; of a third of them 28 are left: 20 and 8 for the test.
    config.dataset.fraction, config.dataset.min_examples = 1 / 3, 15
    config.dataset.num_clients = 200
    return config


def intents() -> ConfigDict:
    """Return clients whose classes others have as well, of each a few examples."""
    config = _dealt("mlp", clients=30, examples=75, rounds=50)
    config.dataset.partition, config.dataset.classes_per_client = "pathological", 15
    config.dataset.alpha = None
    config.compare.algorithms = (*METHODS, *RECENT)
    # Features are about ±0.05, and steps of a size for images would not move anything.
    config.dataset.normalise = "train"
    return config


def synthetic() -> ConfigDict:
    """Return clients with linear models of their own."""
    config = _config("logistic", rounds=100)
    config.compare.algorithms = (*METHODS, *RECENT)
    config.dataset.name, config.dataset.partition = "synthetic", "natural"
    config.dataset.normalise = "train"
    return config


def photographs() -> ConfigDict:
    """Return few clients that differ much in their labels, on data that are hard."""
    config = _dealt("cnn", clients=20, examples=250, rounds=30)
    config.dataset.partition, config.dataset.alpha = "dirichlet_balanced", 0.1
    return config


def photographs_of_two() -> ConfigDict:
    """Return many clients of two classes each."""
    config = _dealt("cnn", clients=100, examples=50, rounds=60, cohort_size=10)
    config.dataset.partition, config.dataset.classes_per_client = "pathological", 2
    config.dataset.alpha = None
    return config


def roles() -> ConfigDict:
    """Return speaking roles, whose next character is predicted."""
    config = _config("lstm", rounds=40, cohort_size=10)
    config.dataset.name, config.dataset.partition = "shakespeare", "natural"
    config.dataset.num_clients, config.dataset.min_examples = 60, 40
    config.compare.grid = (0.3, 1.0, 3.0)
    grids = config.compare.grids
    grids.pflalign = grids.extended = (3.0, 10.0, 30.0, 100.0)
    return config


def _config(model: str, rounds: int, cohort_size: int | None = None) -> ConfigDict:
    """Return the config of a comparison of `METHODS`, scored after every fifth of the rounds.

    Args:
      model: one of `SIZES`.
      rounds: of every run, a multiple of 5.
      cohort_size: clients in a round; None: all.
    """
    config = default_config(model=model)
    config.rounds, config.cohort_size = rounds, cohort_size
    config.eval_every = rounds // 5  # a curve, not one horizon
    config.dataset.validation_fraction = 0.15
    config.dataset.split_by = "random"
    config.model.update(SIZES[model])
    config.checkpoint_every = 0  # a trial takes seconds
    config.compare.algorithms = METHODS
    config.compare.adapt = True
    with config.unlocked():
        config.compare.variants.extended = base.VARIANTS["extended"]
        config.compare.grids.extended = config.compare.grids.pflalign
    return config


def _dealt(model: str, clients: int, examples: int, **fields: Any) -> ConfigDict:
    """Return a config for arrays of a folder, dealt so that clients have as many examples each.

    Args:
      model, fields: as of `_config`.
      clients: how many.
      examples: of training of each, and of test; a fifth as many are of validation.
    """
    factory("dataset", base.DEALT)  # so that its arguments are fields
    config = _config(model, **fields)
    config.dataset.name, config.dataset.source = base.DEALT, "npz"
    config.dataset.num_clients, config.dataset.examples_per_client = clients, examples
    config.dataset.validation_fraction = None
    config.dataset.validation_count, config.dataset.test_count = examples // 5, examples
    return config


SETTINGS: Mapping[str, Callable[[], ConfigDict]] = {
    f.__name__: f for f in (writers, intents, synthetic, photographs, photographs_of_two, roles)
}
