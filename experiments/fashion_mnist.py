"""Fashion-MNIST in PFLlib's setting: 20 clients, Dir(0.1), batch 10, one local epoch."""

from ml_collections import ConfigDict

from pflalign_jax.runs import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config()
    config.rounds = 30
    config.eval_every = 5
    config.dataset.name = "fashion_mnist"
    config.dataset.num_clients = 20
    config.dataset.partition = "dirichlet"  # alpha 0.1
    config.dataset.min_examples = 40
    # PFLlib's split is 75/25 at random; the validation part is taken out of its 75 %. It drops the
    # last batch of an epoch where it is not full.
    config.dataset.validation_fraction = 0.1
    config.dataset.test_fraction = 0.25
    config.dataset.split_by = "random"
    config.drop_last = True
    config.model.name = "cnn"
    # Chosen by accuracy/validation/personal/adapted/mean of the last round, with drop_last=False;
    # see docs/results.md.
    rates = config.learning_rates
    rates.fedavg = 0.05
    rates.pflalign = 0.5
    # The same on a quarter of the data, after 10 rounds, without the last batch.
    rates.gpfl = 0.008
    rates.fedadam = rates.fedrep = rates.fedrod = 0.02
    rates.fedala = rates.fedamp = rates.fedavgm = rates.fedcp = rates.feddbe = rates.feddyn = 0.05
    rates.fedper = rates.fedprox = rates.fedyogi = rates.perfedavg = rates.scaffold = 0.05
    rates.apfl = rates.ditto = rates.fedpac = rates.fedproto = rates.lgfedavg = rates.local = 0.1
    rates.pfedme = 0.1
    rates.fedbabu = 0.2
    config.compare.grid = (0.02, 0.05, 0.1)
    config.compare.grids.pflalign = (0.5, 1.0, 2.0)
    return config
