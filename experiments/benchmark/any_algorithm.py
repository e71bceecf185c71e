"""Any algorithm by its name, with a model that it works with."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from pflalign_jax import algorithms, models
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.features import input_dtype
from pflalign_jax.federated import Algorithm
from pflalign_jax.runs.build import call

NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def named_algorithm(
    name: str,
    model: models.Model,
    dataset: FederatedDataset,
    fields: Mapping[str, Any] = NO_FIELDS,
    **supplied: Any,
) -> Algorithm:
    """Return an algorithm of this library.

    Args:
      name: of the algorithm.
      model, dataset: that it trains, and on what.
      fields: its own hyperparameters.
      supplied: what else it is given, where it takes it, e.g. ``batch_size``.
    """
    of_data = {"num_classes": dataset.num_classes, "num_clients": dataset.num_clients}
    return call(getattr(algorithms, name), fields, model=model, **of_data, **supplied)


def fitting_model(
    name: str,
    candidates: Sequence[models.Model],
    dataset: FederatedDataset,
    fields: Mapping[str, Any] = NO_FIELDS,
) -> models.Model:
    """Return the first model that an algorithm takes: some train adapters, or need normalisation.

    Args:
      name: of the algorithm.
      candidates: models to try.
      dataset: for the shapes of the parameters.
      fields: the algorithm's own hyperparameters.

    Raises:
      ValueError: what the algorithm says of the last model, if it takes none.
    """
    x = jax.ShapeDtypeStruct((1, *dataset.x.shape[1:]), input_dtype(dataset))
    key = jax.random.key(0)
    for model in candidates:
        try:
            algorithm = named_algorithm(name, model, dataset, fields)
            # Some look at the parameters alone.
            jax.eval_shape(algorithm.init, jax.eval_shape(model.init, key, x), key)
            return model
        except ValueError as error:
            refusal = error
    raise refusal


def with_adapters(model: models.Model, dataset: FederatedDataset) -> models.Model:
    """Return a model with low-rank adapters on its dense layers."""
    return models.lora(model, model.init(jax.random.key(0), jnp.asarray(dataset.x[:1])))
