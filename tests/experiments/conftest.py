"""What several tests of comparisons use."""

import pytest

from pflalign_jax.runs.config import default_config


@pytest.fixture(scope="session")
def config():
    config = default_config()
    config.rounds = 2
    config.dataset.name, config.dataset.num_clients = "digits", 4
    config.dataset.fraction = 0.3
    config.model.name = "logistic"
    config.compare.grid, config.compare.extensions = (0.1, 0.2), 0
    config.compare.keep = "none"  # saving takes longer than training
    with config.unlocked():
        config.compare.variants.without_p = {"name": "pflalign", "precondition": False}
        config.compare.grids.without_p = config.compare.grids.fedavg = (0.1,)
    return config
