"""What docs/certificates.md measures: half of Fashion-MNIST, Dir(0.1), an MLP, ten new clients.

python -m experiments.run --config=experiments/certificates.py --workdir=runs/certified
python -m experiments.certify runs/certified
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 30
    config.eval_every = 10
    config.dataset.name = "fashion_mnist"
    config.dataset.fraction = 0.5
    config.dataset.num_clients = 20
    config.dataset.num_new_clients = 10
    config.dataset.partition = "dirichlet"  # alpha 0.1
    config.dataset.min_examples = 40
    config.dataset.split_by = "random"  # a stratified sample is not i.i.d.
    config.dataset.bound_fraction = 0.25
    config.dataset.test_fraction = 0.25
    config.model.name = "mlp"
    config.model.hidden = (100,)
    rates = config.learning_rates
    # By accuracy/validation/personal/adapted/mean after 10 rounds, from 0.05 and 0.1, for FedAvg
    # 0.02, too; for pFLAlign from 0.2, 0.5 and 2.
    rates.fedavg = 0.02
    rates.ditto = 0.05
    rates.local = 0.1
    rates.pflalign = 0.5
    return config
