"""Train, validation and test inside every client."""

from collections.abc import Sequence

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Owned

SPLIT_BY = ("stratified", "random", "temporal")
"""How a client's examples can be split."""


def own(parts: Sequence[np.ndarray]) -> Owned:
    """Return K index arrays as one flat `Owned`."""
    sizes = [len(part) for part in parts]
    return Owned(np.concatenate([np.zeros(0, np.int64), *parts]), np.cumsum([0, *sizes]))


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
) -> dict[str, Owned]:
    """Split every client's examples into train, validation and test.

    A client with ``n`` examples gets ``round(n * fraction)`` for validation and for test, at least
    one of each wanted split where ``n`` allows, and always keeps at least one for training; test
    goes before validation where there are too few. Client ``k`` is split by draws from
    ``default_rng([seed, k])``, whatever the others have.

    Args:
      parts: K index arrays, none empty.
      validation_fraction, test_fraction: parts of each client's examples, in [0, 1), sum below 1.
      seed: of the draws.
      by: ``"random"``; ``"stratified"``: examples ordered by label, evenly spaced ones are taken,
        so that a label's share in a split differs from its share in the client by less than one
        example; ``"temporal"``: in the order stored, train first, test last, nothing is drawn.
      labels: ``[N]`` int, for ``"stratified"``.
      validation_count, test_count: examples of each client, instead of a fraction.

    Returns:
      ``{"train", "validation", "test"}`` to `Owned`.

    Raises:
      DatasetError: for fractions or counts out of range, an unknown ``by``.
    """
    if by not in SPLIT_BY:
        raise DatasetError(f"split_by={by!r} is unknown; choose from {SPLIT_BY}")
    if by == "stratified" and (labels is None or labels.ndim > 1):
        raise DatasetError(
            "split_by='stratified' needs one label per example; choose 'random' or 'temporal'"
        )
    _check_amounts(validation_fraction, test_fraction, validation_count, test_count)
    train, validation, test = [], [], []
    for k, part in enumerate(parts):
        free = len(part) - 1
        num_test = _share(len(part), test_fraction, test_count, free)
        num_validation = _share(len(part), validation_fraction, validation_count, free - num_test)
        if by == "temporal":
            order = np.sort(part)[::-1]
        else:
            order = np.random.default_rng([seed, k]).permutation(part)
        if by == "stratified":
            assert labels is not None
            order = order[np.argsort(labels[order], kind="stable")]
            chosen, rest = _evenly(order, num_test)
            inner, rest = _evenly(rest, num_validation)
        else:
            chosen, inner, rest = np.split(order, [num_test, num_test + num_validation])
        test.append(np.sort(chosen))
        validation.append(np.sort(inner))
        train.append(np.sort(rest))
    return {"train": own(train), "validation": own(validation), "test": own(test)}


def _check_amounts(validation_fraction, test_fraction, validation_count, test_count):
    for name, value in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 <= value < 1:
            raise DatasetError(f"{name}={value} is not allowed; it must be in [0, 1)")
    for name, count in (("validation_count", validation_count), ("test_count", test_count)):
        if count is not None and count < 0:
            raise DatasetError(f"{name}={count} is not allowed; it must be >= 0")
    counted = validation_count is not None or test_count is not None
    if validation_fraction + test_fraction >= 1 and not counted:
        raise DatasetError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} leave "
            "nothing to train on; their sum must be below 1"
        )


def _share(size, fraction, count, most):
    """Return ``count`` or ``round(size * fraction)``, at least 1 if wanted, at most ``most``."""
    if count is not None:
        return min(count, most)
    wanted = max(round(size * fraction), 1) if fraction > 0 else 0
    return min(wanted, most)


def _evenly(order, count):
    """Return ``count`` evenly spaced entries of ``order``, and the others."""
    places = (2 * np.arange(count) + 1) * len(order) // (2 * max(count, 1))
    return order[places], np.delete(order, places)
