"""Checks of the arguments of `partition_examples` that need no data.

What depends on the data is checked where it is used.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pflalign_jax.datasets import shift
from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.label_skew import check_alpha
from pflalign_jax.datasets.partition import check_exponent, check_sigma
from pflalign_jax.datasets.split import SPLIT_BY, check_amounts

NORMALISE = ("fixed", "train")
"""Where mean and standard deviation of the features come from."""

LEAST = {
    "seed": 0,
    "num_clients": 1,
    "num_new_clients": 0,
    "min_examples": 0,
    "classes_per_client": 1,
    "shards_per_client": 1,
    "shift_groups": 1,
    "validation_count": 0,
    "test_count": 0,
    "bound_count": 0,
}
"""The smallest value of whole numbers."""

MOST_SEED = 2**32 - 1
"""The largest seed."""

RANGES: Mapping[str, Callable[[str, float], None]] = {
    "alpha": check_alpha,
    "sigma": check_sigma,
    "exponent": check_exponent,
}
"""What refuses a number of a partition: ``(name of the partition, value) -> None``."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse keyword arguments of `partition_examples` that are possible with no data.

    Args:
      options: all of them by name, None where the data decide.

    Raises:
      DatasetError: naming the argument, its value and what is allowed.
    """
    for name, least in LEAST.items():
        value = options[name]
        if value is not None and (not isinstance(value, (int, np.integer)) or value < least):
            raise DatasetError(
                f"{name}={value} is not allowed; it must be a whole number >= {least}"
            )
    # Keys of random draws on devices have 32 bits: others would be those of another seed.
    if options["seed"] > MOST_SEED:
        raise DatasetError(f"seed={options['seed']} is not allowed; it must be <= {MOST_SEED}")
    fraction = options["fraction"]
    if not 0 < fraction <= 1:
        raise DatasetError(f"fraction={fraction} is not allowed; it must be in (0, 1]")
    if options["partition_file"] is None:  # which says who has what in which split
        for name, check in RANGES.items():
            if options[name] is not None:
                check(options["partition"] or "dirichlet", options[name])
        _check_splits(options)
    _check_shifts(options)
    _check_normalisation(options)


def _check_splits(options: Mapping[str, Any]) -> None:
    by = options["split_by"]
    if by is not None and by not in SPLIT_BY:
        raise DatasetError(f"split_by={by!r} is unknown; choose from {SPLIT_BY}")
    check_amounts(
        options["validation_fraction"] or 0.0,
        options["test_fraction"],
        options["validation_count"],
        options["test_count"],
        options["bound_fraction"],
        options["bound_count"],
    )


def _check_shifts(options: Mapping[str, Any]) -> None:
    kind, strength = options["feature_shift"], options["feature_shift_strength"]
    if kind is None and strength is not None:
        raise DatasetError(f"feature_shift_strength={strength} does nothing without feature_shift")
    if kind is not None and strength is None:
        raise DatasetError(
            f"feature_shift={kind!r} needs feature_shift_strength, e.g. 45 degrees for a rotation, "
            "1 for contrast, 0.2 for brightness or noise"
        )
    if kind is not None:
        shift.check_feature_shift(kind, strength)
    if options["label_shift"] is not None:
        shift.check_label_shift(options["label_shift"])
    elif options["shift_groups"] is not None and kind is None:
        raise DatasetError(
            f"shift_groups={options['shift_groups']} does nothing without feature_shift or "
            "label_shift"
        )


def _check_normalisation(options: Mapping[str, Any]) -> None:
    normalise, mean, std = options["normalise"], options["mean"], options["std"]
    if normalise not in NORMALISE:
        raise DatasetError(f"normalise={normalise!r} is unknown; choose from {NORMALISE}")
    if (mean is None) != (std is None):
        raise DatasetError(f"mean={mean} and std={std}: give both or none")
    if mean is None:
        return
    if normalise == "train":
        raise DatasetError(f"mean={mean} does not go with normalise='train'; drop one of them")
    with np.errstate(over="ignore", under="ignore"):
        mean32, std32 = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if not np.isfinite(mean32).all():
        raise DatasetError(f"mean={mean} is not allowed; it must be finite in float32")
    if not (np.isfinite(std32).all() and std32.min() > 0):
        raise DatasetError(f"std={std} is not allowed; it must be finite and > 0 in float32")
