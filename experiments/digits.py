"""Scikit-learn's digits over 20 skewed clients, MLP; the quickstart."""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config


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
    # Chosen by accuracy/validation/personal/adapted/mean of the last round; see docs/results.md.
    chosen = {
        0.01: "fedyogi",
        0.03: "fedavg feddyn fedprox gpfl",
        0.1: "apfl fedala fedamp fedavgm fedcp feddbe fedpac fedproto fedrod local "
        "perfedavg pfedme",
        0.3: "ditto fedadam fedbabu fedper lgfedavg scaffold",
        0.9: "fedrep",
        10.0: "pflalign",
    }
    config.learning_rates.update({name: rate for rate in chosen for name in chosen[rate].split()})
    return config
