"""Train, validation and test inside every client, and what is kept for bounds."""

from collections.abc import Sequence

import numpy as np

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.random_purposes import BOUND

SPLIT_BY = ("stratified", "random", "temporal")
"""How a client's examples can be split."""


def split_clients(
    parts: Sequence[np.ndarray],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    by: str = "random",
    labels: np.ndarray | None = None,
    validation_count: int | None = None,
    test_count: int | None = None,
) -> dict[str, list[np.ndarray]]:
    """Split every client's examples into train, validation and test.

    A client with ``n`` examples gets ``round(n * fraction)`` for validation and for test. A split
    with a fraction above 0 gets at least one example if ``n`` allows it; one example always stays
    for training, and test comes before validation if there are too few for both. Client ``k`` is
    split by draws from ``default_rng([seed, k])``, so its split does not depend on other clients.

    Args:
      parts: K index arrays, none empty.
      validation_fraction, test_fraction: parts of each client's examples, in [0, 1), sum below 1.
      seed: of the draws.
      by: ``"random"``; ``"stratified"``: examples are ordered by label and evenly spaced ones are
        taken, so that a label's share in a split differs from its share in the client by less than
        one example; ``"temporal"``: in the order stored, train first, test last, nothing is drawn.
      labels: ``[N]`` int, for ``"stratified"``.
      validation_count, test_count: examples of each client, instead of a fraction.

    Returns:
      ``{"train", "validation", "test"}`` to K index arrays in ascending order.

    Raises:
      DatasetError: for fractions or counts out of range, or an unknown ``by``.
    """
    if by not in SPLIT_BY:
        raise DatasetError(f"split_by={by!r} is unknown; choose from {SPLIT_BY}")
    if by == "stratified" and (labels is None or labels.ndim > 1):
        raise DatasetError(
            "split_by='stratified' needs one label per example; choose 'random' or 'temporal'"
        )
    amounts = validation_fraction, test_fraction, validation_count, test_count
    check_amounts(*amounts)
    _check_rest(*amounts)
    splits: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for k, part in enumerate(parts):
        # Never all: a client without training examples could not take part.
        free = len(part) - 1
        num_test = _share(len(part), test_fraction, test_count, free)
        num_validation = _share(len(part), validation_fraction, validation_count, free - num_test)
        if by == "temporal":
            # Latest first: the test examples are taken from the front, as in the other ways.
            order = np.sort(part)[::-1]
        else:
            order = np.random.default_rng([seed, k]).permutation(part)
        if by == "stratified":
            assert labels is not None
            # A stable sort of shuffled examples: random within a label.
            order = order[np.argsort(labels[order], kind="stable")]
            test, rest = _evenly(order, num_test)
            validation, train = _evenly(rest, num_validation)
        else:
            test, validation, train = np.split(order, [num_test, num_test + num_validation])
        splits["train"].append(np.sort(train))
        splits["validation"].append(np.sort(validation))
        splits["test"].append(np.sort(test))
    return splits


def draw_bound(
    parts: Sequence[np.ndarray], fraction: float, seed: int, count: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw what every client keeps for bounds, whatever way the rest is then split.

    It comes first, by plain random draws: of a client's i.i.d. examples it is then an i.i.d. sample
    that is independent of the rest. What is left of a stratified split would not be.

    Args:
      parts: K index arrays, none empty.
      fraction: part of each client's examples, in [0, 1); one example always stays.
      seed: of the draws; client k's are ``default_rng([seed, k, BOUND])``.
      count: examples of each client, instead of a fraction.

    Returns:
      K index arrays of what is kept, in ascending order, and K of the rest, in the order given.
    """
    kept, rest = [], []
    for k, part in enumerate(parts):
        size = _share(len(part), fraction, count, max(len(part) - 1, 0))
        order = np.random.default_rng([seed, k, BOUND]).permutation(len(part))
        kept.append(np.sort(part[order[:size]]))
        rest.append(part[np.sort(order[size:])])
    return kept, rest


def check_amounts(
    validation_fraction: float,
    test_fraction: float,
    validation_count: int | None,
    test_count: int | None,
    bound_fraction: float = 0.0,
    bound_count: int | None = None,
) -> None:
    """Raise an error for fractions or counts out of range."""
    fractions = {
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "bound_fraction": bound_fraction,
    }
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise DatasetError(f"{name}={fraction} is not allowed; it must be in [0, 1)")
    counts = {
        "validation_count": validation_count,
        "test_count": test_count,
        "bound_count": bound_count,
    }
    for name, count in counts.items():
        if count is not None and count < 0:
            raise DatasetError(f"{name}={count} is not allowed; it must be >= 0")


def _check_rest(
    validation_fraction: float,
    test_fraction: float,
    validation_count: int | None,
    test_count: int | None,
) -> None:
    """Raise an error for fractions that leave nothing to train on."""
    # A count replaces a fraction; then the sum of fractions says nothing.
    has_count = validation_count is not None or test_count is not None
    if validation_fraction + test_fraction >= 1 and not has_count:
        raise DatasetError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} leave "
            "nothing to train on; their sum must be below 1"
        )


def _share(size: int, fraction: float, count: int | None, most: int) -> int:
    """Return ``count`` or ``round(size * fraction)``: at least 1 if wanted, at most ``most``."""
    if count is not None:
        return min(count, most)
    share = max(round(size * fraction), 1) if fraction > 0 else 0
    return min(share, most)


def _evenly(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` evenly spaced entries of ``order``, and the others."""
    # The middles of count equal stretches, (i + ½) n / count, in whole numbers.
    positions = (2 * np.arange(count) + 1) * len(order) // (2 * max(count, 1))
    return order[positions], np.delete(order, positions)
