"""What a config's None stands for where only the data or the machine decide it."""

from typing import Any

from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Federation
from pflalign_jax.models import Model
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.config import RUN_FIELDS

BUILT = ("client_chunk", "client_state_in", "algorithm.head", "task", "headline")
"""Fields that may be decided only when the model and the federation are built."""


def effective_config(
    config: ConfigDict,
    dataset: FederatedDataset,
    model: Model | None = None,
    federation: Federation | None = None,
) -> ConfigDict:
    """Return a config in which every None has become the value that the run uses, if there is one.

    A run of what is returned is the same run. Where None means "nothing" (no deadline, no shift)
    it stays.

    Args:
      config: resolved, or read from a ``config.json``, also from one of an earlier version that
        wrote None for more fields, or did not know all.
      dataset: that the config describes.
      model, federation: of the config; None: `BUILT` fields stay as they are.
    """
    # Field to the value that stands for None in it; None where nothing stands for it.
    decided: dict[str, Any] = {"cohort_size": dataset.num_clients}
    # Runs of earlier versions had none of them.
    later = (
        *("metrics", "standardise_targets", "local_optimizer"),
        *("learning_rate_schedule", "learning_rate_final"),
    )
    decided |= {name: RUN_FIELDS[name].default for name in later}
    decided |= {f"dataset.{key}": value for key, value in (dataset.options or {}).items()}
    section = messages.with_defaults(config.get("messages", {}), dataset.num_clients)
    decided |= {f"messages.{key}": value for key, value in section.items()}
    if model is not None and "head" in config.algorithm:
        decided["algorithm.head"] = model.head
    if federation is not None:
        decided["client_chunk"] = federation.client_chunk
        decided["client_state_in"] = federation.client_state_in
        decided["task"] = federation.task.name
        decided["headline"] = federation.task.headline.name
    # What was given is never changed, here or in the config that was passed.
    filled = config.copy_and_resolve_references()
    with filled.unlocked():
        for path, value in decided.items():
            section_name, _, key = path.rpartition(".")
            fields = filled.get(section_name, {}) if section_name else filled
            if fields.get(key) is None and value is not None:
                fields[key] = value
    return filled
