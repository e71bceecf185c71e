"""The settings of docs/certificates.md; for --config of `experiments.certificates` and others.

--config=experiments/certificates/base.py
    half of Fashion-MNIST, Dir(0.1), an MLP, 20 clients and 10 new ones
--config=experiments/certificates/base.py:nist --config.dataset.path=DIRECTORY
    npz by writer, an MLP, 200 writers of which 50 take part in a round, and 60 new ones
--config=experiments/certificates/base.py:intents --config.dataset.path=DIRECTORY
    CLINC150, Dir(0.1), MiniLM with adapters and a head, 20 clients and 10 new ones
"""

from ml_collections import ConfigDict

from experiments import intents
from pflalign_jax.runs import default_config

METHODS = ("pflalign", "fedavg", "ditto", "local")


def get_config(setting: str = "fashion") -> ConfigDict:
    """Return the config of a setting, one of `SETTINGS`."""
    if setting not in SETTINGS:
        raise ValueError(f"setting {setting!r} is unknown; choose from {list(SETTINGS)}")
    config = SETTINGS[setting]()
    config.dataset.split_by = "random"  # a stratified sample is not i.i.d.
    config.compare.algorithms = METHODS
    return config


def fashion() -> ConfigDict:
    """Return half of Fashion-MNIST, dealt to few clients that differ much."""
    config = _mlp()
    config.rounds, config.eval_every = 30, 10
    config.dataset.name, config.dataset.fraction = "fashion_mnist", 0.5
    config.dataset.num_clients, config.dataset.num_new_clients = 20, 10
    config.dataset.partition = "dirichlet"  # alpha 0.1
    config.dataset.min_examples = 40
    rates = config.learning_rates
    # By accuracy/validation/personal/adapted/mean after 10 rounds, from 0.05 and 0.1, for FedAvg
    # 0.02, too; for pFLAlign from 0.2, 0.5 and 2.
    rates.fedavg, rates.ditto, rates.local, rates.pflalign = 0.02, 0.05, 0.1, 0.5
    return config


def nist() -> ConfigDict:
    """Return many writers that differ little; a folder with train.npz and test.npz has them."""
    config = _mlp()
    config.rounds, config.eval_every, config.cohort_size = 60, 20, 50
    config.dataset.name, config.dataset.partition = "npz", "natural"
    config.dataset.source_split = False
    config.dataset.num_clients, config.dataset.num_new_clients = 200, 60
    config.dataset.min_examples = 60
    rates = config.learning_rates
    # Those of the CNN in experiments/femnist.py, not searched for this model.
    rates.fedavg, rates.ditto, rates.local, rates.pflalign = 0.03, 0.1, 0.03, 3.0
    return config


def low_rank_intents() -> ConfigDict:
    """Return requests by 150 intents, of which a client has few; adapters and head are trained."""
    config = intents.get_config()
    config.eval_every = config.rounds
    config.dataset.fraction = 0.3
    config.dataset.num_new_clients = 10
    config.dataset.validation_fraction = 0.1
    config.dataset.bound_fraction = 0.25
    config.dataset.test_fraction = 0.25
    rates = config.learning_rates
    # As experiments.compare chose them for experiments/intents.py.
    rates.fedavg, rates.ditto, rates.local, rates.pflalign = 0.3, 0.1, 0.1, 10.0
    return config


def _mlp() -> ConfigDict:
    config = default_config()
    config.dataset.bound_fraction = config.dataset.test_fraction = 0.25
    config.model.name, config.model.hidden = "mlp", (100,)
    return config


SETTINGS = {"fashion": fashion, "nist": nist, "intents": low_rank_intents}
