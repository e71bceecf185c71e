"""Label skew: partitions in which clients hold different labels.

Like all partitions they return K disjoint int64 index arrays whose union is all examples, none of
them empty. Work is bounded, and all draws come from ``numpy.random.default_rng(seed)``.
"""

from collections.abc import Callable

import numpy as np

from pflalign_jax.datasets.base import DatasetError


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, min_size: int, seed: int
) -> list[np.ndarray]:
    """Split every label over clients in proportions drawn from a symmetric Dirichlet.

    For each label, the proportions over clients are drawn from Dir(alpha). As in PFLlib's
    partition, clients that already hold N / K examples get none of the label (but all clients may
    get some if otherwise all proportions were 0). PFLlib draws everything again until each client
    has enough, which may never end. Here nothing is drawn again: a client below ``min_size`` gets
    single examples, chosen at random, each from the client that is largest at that moment.

    Args:
      labels: ``[N]`` int.
      num_clients: K.
      alpha: concentration > 0; the smaller, the fewer labels a client has.
      min_size: least number of examples of a client, >= 1.
      seed: of all draws.

    Returns:
      K index arrays, each of at least ``min_size`` examples.

    Raises:
      DatasetError: for ``alpha`` not in (0, 1e9], ``min_size < 1`` or ``K * min_size > N``.

    References:
      Hsu, Qi and Brown, arXiv:1909.06335 (Dirichlet over labels); Zhang et al., PFLlib,
      arXiv:2312.04992 (the size limit).
    """
    check_alpha("dirichlet", alpha)
    if min_size < 1:
        raise DatasetError(f"dirichlet: min_examples={min_size} is not allowed; it must be >= 1")
    num_examples = len(labels)
    check_clients(num_clients, num_examples, min_size)
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(num_clients)]  # lists, since examples move below
    sizes = np.zeros(num_clients, np.int64)
    for label in np.unique(labels):
        pool = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_clients, alpha))
        # Clients that are full get none. With a small alpha the draw may be 0 for all others; then
        # the draw counts as it is, since somebody has to get the label.
        open_shares = shares * (sizes < num_examples / num_clients)
        if open_shares.sum() > 0:
            shares = open_shares / open_shares.sum()
        cuts = (np.cumsum(shares)[:-1] * len(pool)).astype(np.int64)
        for k, part in enumerate(np.split(pool, cuts)):
            parts[k].extend(part)
            sizes[k] += len(part)
    # At most K * min_size moves: a donor is the largest client, so it has more than min_size
    # whenever another has less, and does not fall below it.
    for k in np.flatnonzero(sizes < min_size).tolist():
        while sizes[k] < min_size:
            donor = int(np.argmax(sizes))
            parts[k].append(parts[donor].pop(int(rng.integers(sizes[donor]))))
            sizes[k], sizes[donor] = sizes[k] + 1, sizes[donor] - 1
    return [np.sort(np.asarray(part, np.int64)) for part in parts]


def dirichlet_balanced(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Give all clients equally many examples, with label proportions drawn from a Dirichlet.

    Clients are filled one after the other, in a random order. A client's proportions over labels
    are drawn from Dir(alpha * C * share of each label in the whole), with C labels, and its numbers
    of examples from a multinomial with these proportions. What a label cannot supply is drawn again
    from the labels that still have examples. Every such draw exhausts a label or fills the client,
    so there are at most C.

    Args:
      labels: ``[N]`` int.
      num_clients: K.
      alpha: concentration > 0; the smaller, the fewer labels a client has.
      seed: of all draws.

    Returns:
      K index arrays whose sizes differ by at most one.

    Raises:
      DatasetError: for ``alpha`` not in (0, 1e9] or fewer examples than clients.

    References:
      Hsu, Qi and Brown, arXiv:1909.06335, section 3.
    """
    check_alpha("dirichlet_balanced", alpha)
    check_clients(num_clients, len(labels), 1)
    rng = np.random.default_rng(seed)
    classes, label, supply = np.unique(labels, return_inverse=True, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(label == c)) for c in range(len(classes))]
    concentration = alpha * len(classes) * supply / len(labels)
    sizes = np.full(num_clients, len(labels) // num_clients)
    sizes[: len(labels) % num_clients] += 1
    # Of each label: examples given out so far, and those that are left.
    taken, left = np.zeros(len(classes), np.int64), supply.astype(np.int64)
    parts = [np.zeros(0, np.int64)] * num_clients
    # In a random order, since the last clients have to take what is left.
    for k in rng.permutation(num_clients):
        proportions, missing = rng.dirichlet(concentration), sizes[k]
        counts = np.zeros(len(classes), np.int64)
        while missing:
            shares = proportions * (left > counts)
            # None of the labels that the client was to have is left: it takes any others.
            if not shares.sum() > 0:
                shares = (left - counts).astype(float)
            more = rng.multinomial(missing, shares / shares.sum())
            counts = np.minimum(counts + more, left)
            missing = sizes[k] - counts.sum()
        of_label = [pools[c][taken[c] : taken[c] + n] for c, n in enumerate(counts) if n]
        parts[k] = np.sort(np.concatenate(of_label))
        taken, left = taken + counts, left - counts
    return parts


def pathological(
    labels: np.ndarray, num_clients: int, classes_per_client: int, seed: int
) -> list[np.ndarray]:
    """Give every client exactly ``classes_per_client`` labels.

    Labels, in a random order, are given to clients in turn, so that the numbers of clients that
    hold a label differ by at most one. The examples of a label are shared evenly among its holders.

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

    # As even as whole numbers allow: the first holders get one example more.
    def even_cuts(rng: np.random.Generator, examples: int, holders: int) -> np.ndarray:
        del rng
        sizes = np.full(holders, examples // holders)
        sizes[: examples % holders] += 1
        return np.cumsum(sizes)[:-1]

    return _by_labels_per_client(
        "pathological", labels, num_clients, classes_per_client, 1, even_cuts, seed
    )


def shards(
    labels: np.ndarray, num_clients: int, shards_per_client: int, seed: int
) -> list[np.ndarray]:
    """Sort by label, cut into ``K * s`` equal shards, and give every client s of them at random.

    Args:
      labels: ``[N]`` int.
      num_clients: K.
      shards_per_client: s >= 1.
      seed: of the order within a label and of the assignment of shards.

    Raises:
      DatasetError: for ``s < 1`` or fewer examples than shards.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
      Data", AISTATS 2017, section 3.
    """
    if shards_per_client < 1:
        raise DatasetError(
            f"shards: shards_per_client={shards_per_client} is not allowed; it must be >= 1"
        )
    check_clients(num_clients, len(labels), shards_per_client)
    rng = np.random.default_rng(seed)
    # A stable sort of shuffled examples: random within a label.
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(order, num_clients * shards_per_client)
    shards_of_client = rng.permutation(len(pieces)).reshape(num_clients, shards_per_client)
    return [np.sort(np.concatenate([pieces[i] for i in chosen])) for chosen in shards_of_client]


def extended_dirichlet(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    alpha: float,
    min_size: int,
    seed: int,
) -> list[np.ndarray]:
    """Give every client ``classes_per_client`` labels, in sizes drawn from a Dirichlet.

    Labels are given to clients as in `pathological`. Each label's examples are then shared among
    its holders in proportions from Dir(alpha), with at least ``min_size / classes_per_client``
    examples (rounded up) for each holder.

    Args:
      labels: ``[N]`` int.
      num_clients: K.
      classes_per_client: c.
      alpha: concentration > 0; the smaller, the more unequal.
      min_size: least number of examples of a client, >= 1.
      seed: of all draws.

    Raises:
      DatasetError: as `pathological`, for ``alpha`` not in (0, 1e9], ``min_size < 1``, and for a
        label with too few examples for its holders.

    References:
      Li and Lyu, "Convergence Analysis of Sequential Federated Learning on Heterogeneous Data",
      arXiv:2311.03154, appendix (which has no least size).
    """
    check_alpha("extended_dirichlet", alpha)
    if min_size < 1:
        raise DatasetError(f"min_examples={min_size} is not allowed; it must be >= 1")
    # Rounded up; the maximum only avoids a division by 0 before classes_per_client is checked.
    least = -(-min_size // max(classes_per_client, 1))

    def drawn_cuts(rng: np.random.Generator, examples: int, holders: int) -> np.ndarray:
        # `least` for each holder, and the rest by the drawn proportions.
        free = examples - least * holders
        shares = np.cumsum(rng.dirichlet(np.full(holders, alpha)))[:-1]
        return np.round(shares * free).astype(np.int64) + least * np.arange(1, holders)

    return _by_labels_per_client(
        "extended_dirichlet", labels, num_clients, classes_per_client, least, drawn_cuts, seed
    )


def _by_labels_per_client(
    name: str,
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    least: int,
    cuts: Callable[[np.random.Generator, int, int], np.ndarray],
    seed: int,
) -> list[np.ndarray]:
    """Give every client ``classes_per_client`` labels and share each label among its holders.

    Args:
      name: of the partition, for messages.
      labels: ``[N]`` int.
      num_clients: K.
      classes_per_client: c.
      least: examples of a label that each of its holders gets at least; fewer are an error.
      cuts: ``(rng, examples, holders)`` to the ``holders - 1`` positions at which a label's
        shuffled examples are cut.
      seed: of all draws.
    """
    classes = np.unique(labels)
    if not 1 <= classes_per_client <= len(classes):
        raise DatasetError(
            f"{name}: classes_per_client={classes_per_client} is not allowed; the data have "
            f"{len(classes)} labels, use 1..{len(classes)}"
        )
    if num_clients * classes_per_client < len(classes):
        raise DatasetError(
            f"{name}: {num_clients} clients with {classes_per_client} labels each would "
            f"leave some of the {len(classes)} labels unused; raise num_clients or "
            "classes_per_client"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(classes)
    # K * c places in a row, c for each client; labels 0, 1, ..., C-1, 0, 1, ... fill them. So a
    # client's c <= C labels are all different.
    place_label = np.arange(num_clients * classes_per_client) % len(classes)
    place_client = rng.permutation(num_clients).repeat(classes_per_client)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for position, label in enumerate(order):
        holders = place_client[place_label == position]
        pool = rng.permutation(np.flatnonzero(labels == label))
        if len(pool) < least * len(holders):
            raise DatasetError(
                f"{name}: label {label} has {len(pool)} examples for {len(holders)} clients with "
                f"at least {least} each; lower num_clients, classes_per_client or min_examples"
            )
        pieces = np.split(pool, cuts(rng, len(pool), len(holders)))
        for k, part in zip(holders, pieces, strict=True):
            parts[k].append(part)
    return [np.sort(np.concatenate(part)) for part in parts]


def check_alpha(name: str, alpha: float) -> None:
    """Raise an error for a concentration from which nothing can be drawn."""
    # Far above the largest that differs from equal shares; sums of larger ones overflow.
    if not 0 < alpha <= 1e9:
        raise DatasetError(
            f"{name}: alpha={alpha} is not allowed; it must be > 0 and at most 1e9 (equal shares "
            "are partition='iid')"
        )


def check_clients(num_clients: int, num_examples: int, min_size: int) -> None:
    """Raise an error if there are too few examples for this number of clients.

    Raises:
      DatasetError: naming both numbers.
    """
    if num_clients < 1:
        raise DatasetError(f"num_clients={num_clients} is not allowed; it must be >= 1")
    if num_clients * min_size > num_examples:
        raise DatasetError(
            f"num_clients={num_clients} with at least {min_size} examples each need "
            f"{num_clients * min_size} examples, but there are {num_examples}; lower num_clients "
            "or min_examples"
        )
