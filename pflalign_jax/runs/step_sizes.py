"""Step sizes that are not the same all the time: over rounds, and in the last adaptation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from pflalign_jax.runs.config_checks import ConfigError

SCHEDULES: Mapping[str, Callable[[int, float], Callable[[jax.Array], jax.Array]]] = {
    "cosine": lambda steps, final: optax.cosine_decay_schedule(1.0, steps, alpha=final),
    "linear": lambda steps, final: optax.linear_schedule(1.0, final, steps),
    "exponential": lambda steps, final: optax.exponential_decay(1.0, steps, final, end_value=final),
}
"""From the rounds between the first and the last one, and the share of the step size that the last
one takes, to a schedule over rounds. Besides them there is ``"constant"``, which needs none."""


def check_step_sizes(config: ConfigDict) -> None:
    """Refuse fields of a resolved config that name no schedule.

    Raises:
      ConfigError: naming the field, its value and what to do.
    """
    final, schedule = config.learning_rate_final, config.learning_rate_schedule
    if not (0 <= final <= 1) or (schedule == "exponential" and final == 0):
        allowed = "above 0 and at most 1" if schedule == "exponential" else "in [0, 1]"
        raise ConfigError(
            f"config.learning_rate_final={final!r} is not allowed with learning_rate_schedule="
            f"{schedule!r}; it must be {allowed}: the share of learning_rate that the last round "
            "takes"
        )
    if config.adapt_learning_rate == ():
        raise ConfigError(
            "config.adapt_learning_rate=() is not allowed; None adapts with the step size of "
            "training"
        )
    if schedule != "constant" and config.algorithm.get("learning_rate") is None:
        raise ConfigError(
            f"config.learning_rate_schedule={schedule!r} changes the argument learning_rate, which "
            f"algorithm {config.algorithm.name!r} does not take; use 'constant'"
        )


def round_schedules(config: Mapping[str, Any]) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Return ``{hyperparameter: schedule}`` of a resolved config; none if all are constant."""
    name = config["learning_rate_schedule"]
    if name == "constant":
        return {}
    steps = max(config["rounds"] - 1, 1)
    return {"learning_rate": SCHEDULES[name](steps, config["learning_rate_final"])}


def adapt_learning_rates(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the step sizes of the last adaptation of a resolved config; none if it has none."""
    given = config.get("adapt_learning_rate")  # a config.json of an earlier version has none
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def in_state(config: Mapping[str, Any], adapts_with: str = "learning_rate") -> tuple[str, ...]:
    """Return the hyperparameters that a run of a resolved config keeps in the server's state.

    Args:
      config: resolved, or read from a ``config.json``, also from one of an earlier version.
      adapts_with: of the algorithm.
    """
    constant = config.get("learning_rate_schedule", "constant") == "constant"
    names = () if constant else ("learning_rate",)
    return (*names, adapts_with) if adapt_learning_rates(config) else names
