"""Your own clients: files with a client for every example, kept with their clients; MLP.

python -m experiments.compare --config=experiments/own_data.py --config.dataset.path=FILE.npz
python -m experiments.run --config=experiments/own_data.py --config.dataset.path=FILE.npz \
    --config.algorithm.name=fedavg --config.algorithm.learning_rate=0.1

--config.dataset.name=tables for csv and parquet. `compare` searches the step size of every method
on validation: none is listed here, because none is right for all data. Runs are named after the
data. A comparison of 600 examples of 6 clients takes about two minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 30
    config.eval_every = 5
    config.dataset.name = "npz"
    config.dataset.partition = "natural"
    config.dataset.normalise = "train"  # "fixed" for tokens
    config.model.name = "mlp"
    config.model.hidden = (100,)
    config.compare.algorithms = ("local", "fedavg", "ditto", "pflalign")
    config.compare.grids.pflalign = (0.3, 1.0, 3.0, 10.0)
    return config
