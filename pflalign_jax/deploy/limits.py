"""What a config may not ask for where clients are not simulated, each refused by its name."""

from ml_collections import ConfigDict

from pflalign_jax.models import Model
from pflalign_jax.runs.config_checks import ConfigError

SIMULATED = {
    "dropout": 0.0,
    "over_selection": 1.0,
    "slowness": 0.0,
}
"""Fields of ``participation`` that imitate what real clients do by themselves, and no imitation."""


def check_deployable(config: ConfigDict) -> None:
    """Refuse a resolved config that needs all clients' data in one place, or imitates clients.

    Raises:
      ConfigError: naming the field, its value and what to do.
    """
    dataset = config.dataset

    def refuse(field: str, value: object, why: str) -> None:
        raise ConfigError(f"config.{field}={value!r} does not go with real clients: {why}")

    if dataset.get("normalise") == "train":
        refuse(
            "dataset.normalise",
            "train",
            "mean and standard deviation are those of all clients' examples, which are nowhere "
            "together; set config.dataset.mean and std",
        )
    if dataset.get("num_new_clients"):
        refuse(
            "dataset.num_new_clients",
            dataset.num_new_clients,
            "a client that never trains is a node that is not there; use 0",
        )
    if config.standardise_targets:
        refuse(
            "standardise_targets",
            True,
            "it needs the targets of all clients; scale them in their files",
        )
    if config.generate_every is not None:
        refuse("generate_every", config.generate_every, "personal models stay on their nodes")
    if config.messages.attack is not None:
        refuse("messages.attack", config.messages.attack, "attacks are for simulations")
    for name, none in SIMULATED.items():
        value = config.participation.get(name, none)
        if value != none:
            refuse(
                f"participation.{name}",
                value,
                f"it imitates clients that are late or lost; use {none} and a deadline",
            )


def check_model(model: Model) -> None:
    """Refuse a model that looks at features before training.

    Raises:
      ConfigError: saying what to use.
    """
    if model.prepare is not None:
        raise ConfigError(
            "config.model: this model computes or checks the features of all examples before "
            "training (Model.prepare), which is not supported on nodes; use one without, such as "
            "pretrained_decoder with config.model.keep_hidden=False"
        )
