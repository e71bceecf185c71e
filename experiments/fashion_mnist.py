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
    config.learning_rates.update({"fedavg": 0.05, "pflalign": 0.5})
    # The same on a quarter of the data, after 10 rounds, without the last batch.
    chosen = {
        0.008: "gpfl",
        0.02: "fedadam fedrep fedrod",
        0.05: "fedala fedamp fedavgm fedcp feddbe feddyn fedper fedprox fedyogi perfedavg scaffold",
        0.1: "apfl ditto fedpac fedproto lgfedavg local pfedme",
        0.2: "fedbabu",
    }
    config.learning_rates.update({name: rate for rate in chosen for name in chosen[rate].split()})
    config.compare.grid = (0.02, 0.05, 0.1)
    config.compare.grids.pflalign = (0.5, 1.0, 2.0)
    return config
