"""FEMNIST: handwriting by writer, thousands of clients, a cohort of 50 per round, CNN.

Reads what TFDS has prepared, or downloads and prepares it; --config.dataset.path=PATH reads LEAF's
json, TFF's HDF5, or npz by writer instead. --config.dataset.variant=digits for the ten digits.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 30
    config.eval_every = 5
    config.cohort_size = 50
    config.dataset.name = "femnist"
    config.dataset.validation_fraction = 0.15
    config.dataset.split_by = "random"
    config.model.name = "cnn"
    # Chosen by accuracy/validation/personal/adapted/mean of the last round; see docs/results.md.
    rates = config.learning_rates
    rates.fedavg = 0.03
    rates.local = 0.03
    rates.pflalign = 3.0
    # The same with 200 writers and 60 rounds, after 20 (ditto: after all 60).
    rates.fedcp = rates.gpfl = 0.009
    rates.fedadam = rates.fedavgm = rates.fedproto = rates.fedrep = rates.fedrod = 0.03
    rates.fedyogi = rates.lgfedavg = rates.perfedavg = rates.scaffold = 0.03
    rates.apfl = rates.ditto = rates.fedala = rates.fedbabu = rates.feddbe = rates.feddyn = 0.1
    rates.fedpac = rates.fedper = rates.fedprox = 0.1
    config.compare.grid = (0.03, 0.1, 0.3)
    config.compare.grids.pflalign = (1.0, 3.0, 10.0)
    return config
