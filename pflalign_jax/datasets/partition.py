"""Who owns which example: partitions of a pool of examples over K clients.

Every function returns K disjoint int64 index arrays whose union is all examples, none of them
empty. Work is bounded: nothing is drawn again until it fits. Draws come from
``numpy.random.default_rng(seed)``, never from NumPy's global state.
"""

import numpy as np

from pflalign_jax.datasets.base import DatasetError


def iid(num_examples: int, num_clients: int, seed: int) -> list[np.ndarray]:
    """Shuffle the examples and deal them out evenly.

    Args:
      num_examples: N.
      num_clients: K, at most N.
      seed: of the shuffle.

    Returns:
      K index arrays whose sizes differ by at most one.

    Raises:
      DatasetError: for fewer examples than clients.
    """
    _check_clients(num_clients, num_examples, 1)
    order = np.random.default_rng(seed).permutation(num_examples)
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, min_size: int, seed: int
) -> list[np.ndarray]:
    """Split every label over clients in proportions drawn from a symmetric Dirichlet.

    Label by label, the proportions over clients are drawn from Dir(alpha); as in PFLlib's
    partition, clients that already hold N / K examples get none of the label (all may, where
    every proportion would vanish). PFLlib draws everything again until each client has enough,
    which may never end; here clients below ``min_size`` get single examples, chosen at random,
    from whichever client is largest at that moment, and nothing is drawn again.

    Args:
      labels: ``[N]`` int.
      num_clients: K.
      alpha: concentration > 0; the smaller, the fewer labels a client has.
      min_size: examples that every client has at least, >= 1.
      seed: of all draws.

    Returns:
      K index arrays, each of at least ``min_size``.

    Raises:
      DatasetError: for ``alpha <= 0``, ``min_size < 1`` or ``K * min_size > N``.

    References:
      Hsu, Qi and Brown, arXiv:1909.06335 (Dirichlet over labels); Zhang et al., PFLlib,
      arXiv:2312.04992 (the size limit).
    """
    if not alpha > 0:
        raise DatasetError(f"dirichlet: alpha={alpha} is not allowed; it must be > 0")
    if min_size < 1:
        raise DatasetError(f"dirichlet: min_examples={min_size} is not allowed; it must be >= 1")
    num_examples = len(labels)
    _check_clients(num_clients, num_examples, min_size)
    rng = np.random.default_rng(seed)
    parts = [[] for _ in range(num_clients)]
    sizes = np.zeros(num_clients, np.int64)
    for label in np.unique(labels):
        pool = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_clients, alpha))
        open_shares = shares * (sizes < num_examples / num_clients)
        if open_shares.sum() > 0:
            shares = open_shares / open_shares.sum()
        cuts = (np.cumsum(shares)[:-1] * len(pool)).astype(np.int64)
        for k, part in enumerate(np.split(pool, cuts)):
            parts[k].extend(part)
            sizes[k] += len(part)
    for k in np.flatnonzero(sizes < min_size):
        while sizes[k] < min_size:
            donor = int(np.argmax(sizes))
            parts[k].append(parts[donor].pop(int(rng.integers(sizes[donor]))))
            sizes[k], sizes[donor] = sizes[k] + 1, sizes[donor] - 1
    return [np.sort(np.asarray(part, np.int64)) for part in parts]


def pathological(
    labels: np.ndarray, num_clients: int, classes_per_client: int, seed: int
) -> list[np.ndarray]:
    """Give every client exactly ``classes_per_client`` labels.

    Labels in a random order are dealt out to clients in turn, so that they have equally many
    holders (up to one); the examples of a label are shared evenly among its holders.

    Args:
      labels: ``[N]`` int.
      num_clients: K.
      classes_per_client: c.
      seed: of all draws.

    Returns:
      K index arrays with examples of c labels each.

    Raises:
      DatasetError: for c below 1 or above the number of labels, for ``K * c`` too small to use
        every label, or a label with fewer examples than holders.
    """
    classes = np.unique(labels)
    if not 1 <= classes_per_client <= len(classes):
        raise DatasetError(
            f"pathological: classes_per_client={classes_per_client} is not allowed; the data have "
            f"{len(classes)} labels, use 1..{len(classes)}"
        )
    if num_clients * classes_per_client < len(classes):
        raise DatasetError(
            f"pathological: {num_clients} clients with {classes_per_client} labels each would "
            f"leave some of the {len(classes)} labels unused; raise num_clients or "
            "classes_per_client"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(classes)
    hands = np.arange(num_clients * classes_per_client) % len(classes)
    holders = rng.permutation(num_clients).repeat(classes_per_client)
    parts = [[] for _ in range(num_clients)]
    for position, label in enumerate(order):
        mine = holders[hands == position]
        pool = rng.permutation(np.flatnonzero(labels == label))
        if len(pool) < len(mine):
            raise DatasetError(
                f"pathological: label {label} has {len(pool)} examples for {len(mine)} clients; "
                "lower num_clients or classes_per_client"
            )
        for k, part in zip(mine, np.array_split(pool, len(mine)), strict=True):
            parts[k].append(part)
    return [np.sort(np.concatenate(part)) for part in parts]


def natural(owners: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Group examples by their natural owner.

    Args:
      owners: ``[N]`` ints or strings.

    Returns:
      ``[K]`` owner names as strings, in the natural order (integers by value), and K index arrays.
    """
    names, owner = np.unique(owners, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    cuts = np.cumsum(np.bincount(owner, minlength=len(names)))[:-1]
    return names.astype(str), np.split(order, cuts)


def _check_clients(num_clients, num_examples, min_size):
    if num_clients < 1:
        raise DatasetError(f"num_clients={num_clients} is not allowed; it must be >= 1")
    if num_clients * min_size > num_examples:
        raise DatasetError(
            f"num_clients={num_clients} with at least {min_size} examples each need "
            f"{num_clients * min_size} examples, but there are {num_examples}; lower num_clients "
            "or min_examples"
        )
