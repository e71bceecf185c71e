"""Train, validation and test inside every client."""

from collections.abc import Sequence

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Owned


def own(parts: Sequence[np.ndarray]) -> Owned:
    """Return K index arrays as one flat `Owned`."""
    sizes = [len(part) for part in parts]
    return Owned(np.concatenate([np.zeros(0, np.int64), *parts]), np.cumsum([0, *sizes]))


def split_clients(
    parts: Sequence[np.ndarray], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Owned]:
    """Split every client's examples at random into train, validation and test.

    A client with ``n`` examples gets ``round(n * fraction)`` for validation and for test, at least
    one of each wanted split where ``n`` allows, and always keeps at least one for training; test
    goes before validation where there are too few. Client ``k`` is split by draws from
    ``default_rng([seed, k])``, whatever the others have.

    Args:
      parts: K index arrays, none empty.
      validation_fraction, test_fraction: parts of each client's examples, in [0, 1), sum below 1.
      seed: of the draws.

    Returns:
      ``{"train", "validation", "test"}`` to `Owned`.

    Raises:
      DatasetError: for fractions out of range.
    """
    for name, value in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 <= value < 1:
            raise DatasetError(f"{name}={value} is not allowed; it must be in [0, 1)")
    if validation_fraction + test_fraction >= 1:
        raise DatasetError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} leave "
            "nothing to train on; their sum must be below 1"
        )
    train, validation, test = [], [], []
    for k, part in enumerate(parts):
        shuffled = np.random.default_rng([seed, k]).permutation(part)
        free = len(part) - 1
        num_test = _share(len(part), test_fraction, free)
        num_validation = _share(len(part), validation_fraction, free - num_test)
        test.append(np.sort(shuffled[:num_test]))
        validation.append(np.sort(shuffled[num_test : num_test + num_validation]))
        train.append(np.sort(shuffled[num_test + num_validation :]))
    return {"train": own(train), "validation": own(validation), "test": own(test)}


def _share(size, fraction, most):
    """Return ``round(size * fraction)``, at least 1 if anything is wanted, at most ``most``."""
    wanted = max(round(size * fraction), 1) if fraction > 0 else 0
    return min(wanted, most)
