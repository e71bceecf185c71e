"""Refuse values of a config that no data could make possible, before there are any data.

The functions that a config names refuse bad values themselves. Most of them need something of the
data as well; here they are called with a stand-in for it, and what they return is dropped.
"""

from ml_collections import ConfigDict

from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.build import (
    build_algorithm,
    build_model,
    build_participation,
    errors_of,
    rebuild_task,
)
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.factories import FACTORIES, parameters
from pflalign_jax.tasks import classification

OUTPUTS = 10
"""Of the stand-in for the data: classes. No function of the package allows a value for the sake of
a certain number."""

CLIENTS = 100
"""Of the stand-in for the data."""


def check_config(config: ConfigDict) -> ConfigDict:
    """Return a config resolved, or refuse it for what its values alone tell.

    Functions outside the package are not called: what they make of a stand-in is not known.

    Raises:
      ConfigError: as `resolve`, or naming the value that a function refuses.
    """
    resolved = resolve(config)
    outside = {section for section in FACTORIES if config[section].name not in FACTORIES[section]}
    if "participation" not in outside:
        with errors_of("participation"):
            build_participation(resolved)
    # Nor are models whose weights are in files, which this reads as little as data.
    if outside & {"model", "algorithm"} or "path" in parameters("model", resolved.model.name):
        return resolved
    # Without a task in the config the data choose it, and with it what metrics there are.
    task = (
        classification() if resolved.task is None else rebuild_task(resolved, resolved.task, None)
    )
    with errors_of("model"):
        model = build_model(resolved, OUTPUTS)
    with errors_of("algorithm"):
        algorithm = build_algorithm(resolved, model, task, OUTPUTS, CLIENTS)
    messages.check_values(algorithm, resolved)
    return resolved
