"""Scikit-learn's digits over 20 skewed clients, MLP; the quickstart."""

from ml_collections import ConfigDict

from experiments.config import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 60
    config.eval_every = 5
    config.dataset.name = "digits"
    config.dataset.num_clients = 20
    config.dataset.partition = "dirichlet"  # alpha 0.1
    config.dataset.validation_fraction = 0.15
    config.dataset.split_by = "random"
    config.model.name = "mlp"
    config.model.hidden = (100,)
    # Chosen by accuracy/validation/personal/adapted/mean of the last round; see the README.
    config.learning_rates.update({"fedavg": 0.03, "local": 0.1, "pflalign": 10.0})
    return config
