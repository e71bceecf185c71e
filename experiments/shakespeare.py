"""Shakespeare: the next character, by speaking role, a cohort of 50 per round, two-layer LSTM.

--config.dataset.path=PATH is required: LEAF's json, TFF's HDF5 or its archive, or plays as text.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 30
    config.eval_every = 15
    config.cohort_size = 50
    config.dataset.name = "shakespeare"
    config.dataset.min_examples = 8
    config.model.name = "lstm"
    # Chosen by accuracy/validation/personal/adapted/mean of the last round; see docs/results.md.
    config.learning_rates.fedavg = 3.0
    config.learning_rates.pflalign = 100.0
    config.compare.grid = (1.0, 3.0, 10.0)
    config.compare.grids.pflalign = (10.0, 30.0, 100.0)
    return config
