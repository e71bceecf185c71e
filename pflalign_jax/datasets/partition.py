"""Who owns which example: partitions of a pool of examples over K clients.

Every function returns K disjoint int64 index arrays whose union is all examples, none of them
empty. Work is bounded: nothing is drawn again until it fits. Draws come from
``numpy.random.default_rng(seed)``, never from NumPy's global state.
"""

import numpy as np

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.label_skew import (
    check_clients,
    dirichlet,
    dirichlet_balanced,
    extended_dirichlet,
    pathological,
    shards,
)

__all__ = [
    "dirichlet",
    "dirichlet_balanced",
    "extended_dirichlet",
    "iid",
    "lognormal",
    "natural",
    "pathological",
    "shards",
    "zipf",
]


def iid(labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
    """Shuffle the examples and give every client equally many.

    Args:
      labels: ``[N]``; only their number counts.
      num_clients: K, at most N.
      seed: of the shuffle.

    Returns:
      K index arrays whose sizes differ by at most one.

    Raises:
      DatasetError: for fewer examples than clients.
    """
    check_clients(num_clients, len(labels), 1)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def lognormal(
    labels: np.ndarray, num_clients: int, sigma: float, min_size: int, seed: int
) -> list[np.ndarray]:
    """Quantity skew: sizes are proportional to log-normal draws; labels are as in the whole.

    Args:
      labels: ``[N]``; only their number counts.
      num_clients: K.
      sigma: standard deviation of the sizes' logarithm, in [0, 50]; 0 gives equal sizes.
      min_size: least number of examples of a client, >= 1.
      seed: of all draws.

    Raises:
      DatasetError: for ``sigma`` not in [0, 50] or ``K * min_size > N``.
    """
    check_sigma("lognormal", sigma)
    rng = np.random.default_rng(seed)
    shares = np.exp(sigma * rng.standard_normal(num_clients))
    return _of_sizes(len(labels), shares, min_size, rng)


def zipf(
    labels: np.ndarray, num_clients: int, exponent: float, min_size: int, seed: int
) -> list[np.ndarray]:
    """Quantity skew: the r-th largest client has a size proportional to ``r ** -exponent``.

    Which client has which rank is drawn at random; labels are as in the whole.

    Args:
      labels: ``[N]``; only their number counts.
      num_clients: K.
      exponent: >= 0; 0 gives equal sizes.
      min_size: least number of examples of a client, >= 1.
      seed: of all draws.

    Raises:
      DatasetError: for ``exponent < 0``, infinite, or ``K * min_size > N``.
    """
    check_exponent("zipf", exponent)
    rng = np.random.default_rng(seed)
    shares = rng.permutation(np.arange(1, num_clients + 1) ** -float(exponent))
    return _of_sizes(len(labels), shares, min_size, rng)


def natural(owners: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Group examples by their natural owner.

    Args:
      owners: ``[N]`` ints or strings.

    Returns:
      ``[K]`` owner names as strings, sorted (integers by value), and K index arrays.
    """
    names, owner = np.unique(owners, return_inverse=True)
    # One sort of all examples, not a search of all for each owner; stable, so that an owner's
    # examples stay in the order stored, which a temporal split relies on.
    order = np.argsort(owner, kind="stable")
    cuts = np.cumsum(np.bincount(owner, minlength=len(names)))[:-1]
    return names.astype(str), np.split(order, cuts)


def check_sigma(name: str, sigma: float) -> None:
    """Raise an error for a standard deviation that gives no sizes."""
    if not 0 <= sigma <= 50:  # sizes of larger ones overflow: one client would have all
        raise DatasetError(f"{name}: sigma={sigma} is not allowed; it must be in [0, 50]")


def check_exponent(name: str, exponent: float) -> None:
    """Raise an error for an exponent that gives no sizes."""
    if not 0 <= exponent < np.inf:
        raise DatasetError(
            f"{name}: exponent={exponent} is not allowed; it must be finite and >= 0"
        )


def _of_sizes(
    num_examples: int, shares: np.ndarray, min_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Give out shuffled examples: ``min_size`` each, the rest in proportion to ``shares``."""
    if min_size < 1:
        raise DatasetError(f"min_examples={min_size} is not allowed; it must be >= 1")
    num_clients = len(shares)
    check_clients(num_clients, num_examples, min_size)
    free = num_examples - num_clients * min_size
    # Cumulative sums are rounded, not the sizes, so that the sizes add up to N.
    cuts = np.round(np.cumsum(shares)[:-1] / shares.sum() * free).astype(np.int64)
    cuts += min_size * np.arange(1, num_clients)
    return [np.sort(part) for part in np.split(rng.permutation(num_examples), cuts)]
