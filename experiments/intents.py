"""Intents of requests (CLINC150) over 20 skewed clients; MiniLM with adapters in its top layers.

make models, and --config.dataset.path=DIRECTORY with the public data_full.json, are required.

A tenth of the data, some 75 training examples of each client: a client has few examples of few of
the 150 intents. A run takes about a minute on a CPU core. For 100 clients and a cohort of
10: --config.dataset.num_clients=100 --config.dataset.fraction=0.5 --config.cohort_size=10.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config

MODEL = "all-MiniLM-L6-v2"


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(model="pretrained_encoder")
    config.rounds = 10
    config.eval_every = 2
    config.dataset.name = "clinc150"
    config.dataset.tokenizer = MODEL
    config.dataset.length = 32
    config.dataset.num_clients = 20
    config.dataset.partition = "dirichlet"  # alpha 0.1
    config.dataset.fraction = 0.1
    config.dataset.validation_fraction = 0.1
    config.dataset.split_by = "random"
    config.model.path = MODEL
    config.model.adapt_layers = 2
    config.compare.algorithms = ("local", "fedavg", "fedavgm", "ditto", "pflalign")
    config.compare.grid = (0.03, 0.1, 0.3)
    config.compare.grids.pflalign = (3.0, 10.0, 30.0)
    return config
