"""Intents of requests (CLINC150) over 20 skewed clients; MiniLM with adapters in its top layers.

make models, and --config.dataset.path=DIRECTORY with the public data_full.json, are required.

A sixth of the data, some 70 training examples of each client: a client has few examples of few of
the 150 intents. A run takes about a minute on two CPU cores. For 100 clients and a cohort of
10: --config.dataset.num_clients=100 --config.dataset.fraction=0.8 --config.cohort_size=10.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config

MODEL = "all-MiniLM-L6-v2"

ABLATION = {
    "no_realignment": {"name": "pflalign", "realignment": False},
    "no_preconditioner": {"name": "pflalign", "precondition": False},
}
"""pFLAlign's two mechanisms, each alone."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(model="pretrained_encoder")
    config.rounds = 10
    config.eval_every = 5
    config.dataset.name = "clinc150"
    config.dataset.tokenizer = MODEL
    config.dataset.length = 24  # 60 of the 22,500 requests are cut
    config.dataset.num_clients = 20
    config.dataset.partition = "dirichlet"  # alpha 0.1
    # Most of it is held out: clients have few examples to learn from, scores need many.
    config.dataset.fraction = 0.16
    config.dataset.validation_fraction = 0.15
    config.dataset.test_fraction = 0.45
    config.dataset.split_by = "random"
    config.model.path = MODEL
    config.model.adapt_layers = 2
    config.compare.algorithms = (
        *("local", "fedavg", "fedavgm", "ditto", "head_only", "ffa_lora", "fedsa_lora"),
        *("pflalign", *ABLATION),
    )
    config.compare.grid = (0.1, 0.3, 1.0)
    config.compare.grids.pflalign = (1.0, 3.0, 10.0)
    with config.unlocked():
        config.compare.variants.update(ABLATION)
        config.compare.grids.no_realignment = config.compare.grids.pflalign
        config.compare.grids.no_preconditioner = config.compare.grid
    return config
