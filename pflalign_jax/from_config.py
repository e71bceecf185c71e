"""From the names and arguments of a resolved config to a model and an algorithm."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.align import align_transform
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Algorithm, proximal
from pflalign_jax.models import Model, with_compute_dtype

TRANSFORMS: dict[str, Callable[[float], Any]] = {
    "personal_tx": align_transform,
    "body_tx": align_transform,
    "before": proximal,
}
"""Arguments of algorithms that are transforms, made from the number that a config has for them."""


def call(function: Callable, fields: Mapping[str, Any], **supplied: Any) -> Any:
    """Call a function with the fields of a config's section but its name; lists become tuples.

    ``supplied`` are further arguments, for those that take them and where the config has none.
    """
    given = {k: _tuples(v) for k, v in fields.items() if k != "name"}
    takes = inspect.signature(function).parameters
    return function(**{k: v for k, v in supplied.items() if k in takes} | given)


def build_model(config: Mapping[str, Any], num_classes: int) -> Model:
    """Return the model of a resolved config.

    Raises:
      ValueError: for arguments that the model refuses.
    """
    model = call(getattr(models, config["model"]["name"]), config["model"], num_classes=num_classes)
    dtype = config["compute_dtype"]
    return model if dtype == "float32" else with_compute_dtype(model, dtype)


def build_dataset(config: Mapping[str, Any]) -> FederatedDataset:
    """Return the dataset of a resolved config.

    Raises:
      DatasetError: naming the file or argument, its value and what to do.
    """
    return call(getattr(datasets, config["dataset"]["name"]), config["dataset"])


def build_algorithm(
    config: Mapping[str, Any],
    model: Model,
    num_classes: int,
    num_clients: int,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Algorithm:
    """Return the algorithm of a resolved config, with ``values`` of hyperparameters instead of its.

    Raises:
      ValueError: for arguments that the algorithm refuses.
    """
    fields = {**config["algorithm"], **values}
    for name in TRANSFORMS.keys() & fields.keys():
        if fields[name] is not None:
            try:
                fields[name] = TRANSFORMS[name](fields[name])
            except ValueError as error:
                raise ValueError(f"{name}={fields[name]!r}: {error}") from error
    return call(
        getattr(algorithms, fields["name"]),
        fields,
        model=model,
        num_classes=num_classes,
        local_epochs=config["local_epochs"],
        batch_size=config["batch_size"],
        num_clients=num_clients,
        diagnostics=config["diagnostics"],
    )


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
