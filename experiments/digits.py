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
    rates = config.learning_rates
    rates.fedyogi = 0.01
    rates.fedavg = rates.feddyn = rates.fedprox = rates.gpfl = 0.03
    rates.apfl = rates.fedala = rates.fedamp = rates.fedavgm = rates.fedcp = rates.feddbe = 0.1
    rates.fedpac = rates.fedproto = rates.fedrod = rates.local = rates.perfedavg = 0.1
    rates.pfedme = 0.1
    rates.ditto = rates.fedadam = rates.fedbabu = rates.fedper = rates.lgfedavg = 0.3
    rates.scaffold = 0.3
    rates.fedrep = 0.9
    rates.pflalign = 10.0
    return config
