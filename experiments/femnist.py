"""Handwriting by writer: hundreds of clients, a cohort of 50 per round, CNN.

Runs on any npz with writers: --config.dataset.path=DIR_OR_FILE.
"""

from ml_collections import ConfigDict

from experiments.config import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 30
    config.eval_every = 5
    config.cohort_size = 50
    config.dataset.name = "npz"
    config.dataset.validation_fraction = 0.15
    config.model.name = "cnn"
    # Chosen by accuracy/validation/personal/adapted/mean of the last round; see the README.
    config.learning_rates.update({"fedavg": 0.03, "local": 0.03, "pflalign": 3.0})
    return config
