"""Give a dataset's examples to clients: partition, splits, new clients, shifts."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from pflalign_jax.datasets import partition as partitions
from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples, FederatedDataset, Owned
from pflalign_jax.datasets.build import Group, assemble
from pflalign_jax.datasets.checks import checked_examples
from pflalign_jax.datasets.options import check_options
from pflalign_jax.datasets.partition_file import read_partition, refuse_other_data
from pflalign_jax.datasets.split import draw_bound, split_clients
from pflalign_jax.models.base import IGNORED
from pflalign_jax.random_purposes import NEW_CLIENTS, OWNER_CHOICE

DEFAULT_VALIDATION_FRACTION = 0.1
"""Part of each client's examples held out for choices, if the user asks for none."""

DEFAULT_NUM_CLIENTS = 20
"""Clients of a partition that is not natural, if the user asks for no number."""


class Partitioner(NamedTuple):
    """A partition by name.

    Attributes:
      function: ``(labels, num_clients, *arguments, seed) -> K index arrays``.
      defaults: its own arguments, in the order of the function, by their names in
        `partition_examples`.
    """

    function: Callable[..., list[np.ndarray]]
    defaults: Mapping[str, Any]


def _natural(owners: np.ndarray) -> list[np.ndarray]:
    """Give every owner its own examples."""
    return partitions.natural(owners)[1]


PARTITIONS = {
    "iid": Partitioner(partitions.iid, {}),
    "dirichlet": Partitioner(partitions.dirichlet, {"alpha": 0.1, "min_examples": 8}),
    "dirichlet_balanced": Partitioner(partitions.dirichlet_balanced, {"alpha": 0.1}),
    "pathological": Partitioner(partitions.pathological, {"classes_per_client": 2}),
    "shards": Partitioner(partitions.shards, {"shards_per_client": 2}),
    "extended_dirichlet": Partitioner(
        partitions.extended_dirichlet,
        {"classes_per_client": 2, "alpha": 0.1, "min_examples": 8},
    ),
    "lognormal": Partitioner(partitions.lognormal, {"sigma": 1.0, "min_examples": 8}),
    "zipf": Partitioner(partitions.zipf, {"exponent": 1.0, "min_examples": 8}),
    "natural": Partitioner(_natural, {"min_examples": 1}),
}
"""All partitions. An argument that is not among a partition's own is refused with it."""


WITHOUT_LABELS = ("iid", "lognormal", "zipf", "natural")
"""Partitions for which only the number of examples or their owners count."""


class PartitionOptions(TypedDict, total=False):
    """The keyword arguments of `partition_examples`, which every named dataset takes.

    Written out a second time so that type checkers know what ``**options`` of these functions may
    be; a test compares the two.
    """

    num_clients: int | None
    partition: str | None
    alpha: float | None
    classes_per_client: int | None
    shards_per_client: int | None
    sigma: float | None
    exponent: float | None
    min_examples: int | None
    partition_file: str | None
    num_new_clients: int
    validation_fraction: float | None
    test_fraction: float
    validation_count: int | None
    test_count: int | None
    bound_fraction: float
    bound_count: int | None
    split_by: str | None
    source_split: bool
    feature_shift: str | None
    feature_shift_strength: float | None
    label_shift: str | None
    shift_groups: int | None
    normalise: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fraction: float
    seed: int


def partition_examples(
    examples: Examples,
    *,
    num_clients: int | None = None,
    partition: str | None = None,
    alpha: float | None = None,
    classes_per_client: int | None = None,
    shards_per_client: int | None = None,
    sigma: float | None = None,
    exponent: float | None = None,
    min_examples: int | None = None,
    partition_file: str | None = None,
    num_new_clients: int = 0,
    validation_fraction: float | None = None,
    test_fraction: float = 0.25,
    validation_count: int | None = None,
    test_count: int | None = None,
    bound_fraction: float = 0.0,
    bound_count: int | None = None,
    split_by: str | None = None,
    source_split: bool = True,
    feature_shift: str | None = None,
    feature_shift_strength: float | None = None,
    label_shift: str | None = None,
    shift_groups: int | None = None,
    normalise: str = "fixed",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> FederatedDataset:
    """Return a federated dataset of the examples, which are checked first (`checked_examples`).

    Args:
      examples: as a loader returned them.
      num_clients: K, clients that train; None: 20, or with natural owners all. If fewer natural
        owners than there are shall train, they are chosen at random.
      partition: how examples are divided among clients: iid, dirichlet, dirichlet_balanced,
        pathological, shards, extended_dirichlet, lognormal, zipf or natural (by owner); None:
        natural where examples have owners, else dirichlet.
      alpha: dirichlet, dirichlet_balanced, extended_dirichlet: concentration > 0; the smaller, the
        more clients differ in their labels; None: 0.1.
      classes_per_client: pathological, extended_dirichlet: labels of each client; None: 2.
      shards_per_client: shards: blocks of examples, sorted by label, of each client, >= 1; None: 2.
      sigma: lognormal: standard deviation of the logarithm of clients' sizes, >= 0; None: 1.
      exponent: zipf: clients' sizes are proportional to ``rank ** -exponent``, >= 0; None: 1.
      min_examples: least number of examples of a client, all splits together. Dirichlet,
        extended_dirichlet, lognormal and zipf guarantee it (None: 8), the natural partition leaves
        out owners with fewer (None: 1), for the others it is only checked (None: not).
      partition_file: a ``partition.npz`` of this or another run (`save_partition` writes them),
        which says who owns what in which split; the arguments of the partition, the new clients and
        the splits are then ignored.
      num_new_clients: additional clients, or natural owners, that are held out whole: they never
        train and are scored as new ones.
      validation_fraction: part of each client's examples held out for choices, in [0, 1); None:
        0.1, but 0 for data of other libraries (``pfllib``, ``fl_bench``, ``hugging_face``) that
        were split there.
      test_fraction: part of each client's examples held out for test scores, in [0, 1). With the
        natural partition a test split that the data came with is kept instead.
      validation_count: examples of each client held out for choices, instead of a fraction.
      test_count: examples of each client held out for test scores, instead of a fraction.
      bound_fraction: part of each client's examples kept for bounds (`pflalign_jax.certificates`),
        in [0, 1): drawn first and at random, read by nothing else; the other fractions are then
        parts of the rest. Of a split that the data came with, a part of the training examples.
      bound_count: examples of each client kept for bounds, instead of a fraction.
      split_by: which of a client's examples are held out: ``"stratified"`` (evenly by label),
        ``"random"``, or ``"temporal"`` (the last ones in the order stored); None: stratified, but
        temporal for sequences of tokens and random for several numbers or labels of an example.
      source_split: False pools the train and test sets that the data came with and splits anew,
        also with natural owners; other partitions always do.
      feature_shift: what differs between clients' features: ``"rotation"``, ``"contrast"``,
        ``"brightness"`` or ``"noise"``; new clients are shifted like the others. None: nothing.
      feature_shift_strength: the most of the feature shift, > 0: degrees of rotation, powers of 2
        of contrast, shares of the features' range of brightness and noise.
      label_shift: how clients' labels differ in meaning: ``"swap"``, two labels change places, or
        ``"permute"``, all do; None: they do not.
      shift_groups: number of different shifts, each of a group of clients; None: each client has
        its own.
      normalise: what features are normalised with: ``"fixed"``, constants of the dataset, or
        ``"train"``, mean and standard deviation of each channel (the last axis) over the training
        examples of all clients.
      mean: mean per channel to normalise with, or one for all, in the units of x as stored,
        instead of the dataset's; needs ``std``.
      std: standard deviation per channel, or one for all, likewise; needs ``mean``.
      fraction: part of all examples to use, in (0, 1], chosen at random by the seed.
      seed: seed of the partition, the splits, the choice of new clients and the shifts.

    Raises:
      DatasetError: naming the argument, its value and what to do.
    """
    # All arguments by their names, so that none is listed again on its way through this file.
    options: dict[str, Any] = {k: v for k, v in locals().items() if k != "examples"}
    check_options(options)
    examples = _subsample(checked_examples(examples), fraction, seed)
    if partition_file is None:
        options = with_defaults(options, examples)
        groups, examples = _divide(examples, options)
    else:
        groups = read_partition(partition_file, examples)
    return _assemble(examples, groups, options)


def with_defaults(options: Mapping[str, Any], examples: Examples) -> dict[str, Any]:
    """Return keyword arguments of `partition_examples` with the values that None stands for.

    The number of natural owners stays None: it is known when they have been counted.

    Raises:
      DatasetError: for an unknown partition, or an argument that does not go with it.
    """
    decided = dict(options)
    if decided["partition"] is None:
        has_labels = np.issubdtype(examples.y.dtype, np.integer)
        without_owner = "dirichlet" if has_labels else "iid"
        decided["partition"] = without_owner if examples.owner is None else "natural"
    if decided["num_clients"] is None and decided["partition"] != "natural":
        decided["num_clients"] = DEFAULT_NUM_CLIENTS
    if decided["split_by"] is None:
        # Several numbers or labels of an example are no sequence: their order says nothing.
        several = "temporal" if examples.num_classes else "random"
        decided["split_by"] = "stratified" if examples.y.ndim == 1 else several
    if decided["validation_fraction"] is None:
        final = examples.split is not None and examples.split_is_final
        decided["validation_fraction"] = 0.0 if final else DEFAULT_VALIDATION_FRACTION
    return decided | partition_arguments(decided["partition"], decided)


def partition_arguments(partition: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a partition's own arguments, with its defaults for those that are None or not given.

    Args:
      partition: one of `PARTITIONS`.
      given: arguments of `partition_examples`, of any partition and others.

    Raises:
      DatasetError: for an unknown partition, or an argument of another partition that is given.
    """
    if partition not in PARTITIONS:
        close = difflib.get_close_matches(str(partition), PARTITIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"partition={partition!r} is unknown; {hint}Choose from {tuple(PARTITIONS)}"
        )
    # An argument that does nothing is an error: the user would believe that it counts.
    defaults = PARTITIONS[partition].defaults
    of_partitions = {name for partitioner in PARTITIONS.values() for name in partitioner.defaults}
    # min_examples is checked after the fact where a partition does not guarantee it.
    for name in sorted(of_partitions - {*defaults, "min_examples"}):
        if given.get(name) is not None:
            takes = f"takes {', '.join(defaults)}" if defaults else "takes none of these arguments"
            raise DatasetError(
                f"{name}={given[name]} does not go with partition={partition!r}, which {takes}"
            )
    # In the order of `defaults`, in which the partition's function takes them.
    return {k: default if given.get(k) is None else given[k] for k, default in defaults.items()}


def _divide(examples: Examples, options: Mapping[str, Any]) -> tuple[list[Group], Examples]:
    """Return the clients that train and the new ones, and the examples with notes on owners."""
    names, parts, notes = _partition(examples, options)
    splits, bound = _split(examples, parts, options)
    if examples.split is not None and not any(map(len, splits["validation"])):
        notes.append(
            "there are no validation examples: rounds and step sizes cannot be chosen; set "
            "validation_fraction to take some from each client's training examples."
        )
    examples = examples._replace(notes=(*examples.notes, *notes))
    groups = _hold_out(names, splits, bound, options["num_new_clients"], options["seed"])
    return groups, examples


def _partition(
    examples: Examples, options: Mapping[str, Any]
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Return the names of all clients, with new ones, their index arrays, and notes."""
    partition, seed = options["partition"], options["seed"]
    count = options["num_clients"]
    if count is not None:
        count += options["num_new_clients"]
    if partition == "natural":
        return _natural_owners(examples, count, options["min_examples"], seed)
    arguments = partition_arguments(partition, options)
    notes = []
    if examples.owner is not None:
        owners = len(np.unique(examples.owner))
        notes.append(
            f"the {owners} clients of the data are not used: partition={partition!r} deals their "
            "examples to clients of its own (partition='natural' keeps them)."
        )
    if partition not in WITHOUT_LABELS and not np.issubdtype(examples.y.dtype, np.integer):
        raise DatasetError(
            f"partition={partition!r} goes by labels, but y of {examples.name} is "
            f"{examples.y.dtype}; use one of {WITHOUT_LABELS}"
        )
    labels = _labels_to_deal_by(examples)
    parts = PARTITIONS[partition].function(labels, count, *arguments.values(), seed)
    _refuse_small(parts, options["min_examples"], partition)
    return np.arange(count).astype(str), parts, notes


def _labels_to_deal_by(examples: Examples) -> np.ndarray:
    """Return one label of each example, ``[N]``, by which partitions deal them out."""
    y = examples.y
    if y.ndim == 1:
        return y
    if examples.num_classes:  # a sequence: its first label that counts
        return np.take_along_axis(y, np.argmax(y != IGNORED, axis=1)[:, None], axis=1)[:, 0]
    # Several labels of an example: which of them are 1, numbered by what occurs.
    return np.unique(y, axis=0, return_inverse=True)[1].reshape(len(y))


def _assemble(
    examples: Examples, groups: Sequence[Group], options: Mapping[str, Any]
) -> FederatedDataset:
    """Return the dataset of the groups, which says with what options it was made."""
    names = ("normalise", "mean", "std", "feature_shift", "label_shift", "shift_groups")
    dataset = assemble(
        examples,
        groups,
        options["seed"],
        strength=options["feature_shift_strength"],
        **{name: options[name] for name in names},
    )
    if options["partition_file"] is None:
        return dataset._replace(options={**options, "num_clients": dataset.num_clients})
    # At the end, because the hash in the file includes labels after their shift.
    refuse_other_data(options["partition_file"], dataset)
    return dataset._replace(options=dict(options))


def _subsample(examples: Examples, fraction: float, seed: int) -> Examples:
    """Return a seeded random part of the examples, in their order."""
    if round(fraction * len(examples.y)) < 1:
        raise DatasetError(
            f"fraction={fraction} of {len(examples.y)} examples leaves none; raise it"
        )
    if fraction == 1:
        return examples
    # The beginning of one order: a smaller fraction is a part of a larger one.
    order = np.random.default_rng(seed).permutation(len(examples.y))
    kept = np.sort(order[: round(fraction * len(examples.y))])
    return examples._replace(
        x=examples.x[kept],
        y=examples.y[kept],
        owner=None if examples.owner is None else examples.owner[kept],
        split=None if examples.split is None else examples.split[kept],
    )


def _refuse_small(parts: Sequence[np.ndarray], min_examples: int | None, partition: str) -> None:
    """Raise an error if a client has fewer examples than the user asked for."""
    smallest = min(map(len, parts))
    if min_examples is not None and smallest < min_examples:
        raise DatasetError(
            f"partition={partition!r} cannot guarantee min_examples={min_examples}: a client has "
            f"{smallest}; lower min_examples or num_clients"
        )


def _natural_owners(
    examples: Examples, count: int | None, min_examples: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Return names and index arrays of ``count`` natural owners (None: all), and notes.

    Owners with fewer than ``min_examples`` are left out, which is noted.
    """
    if examples.owner is None:
        others = tuple(name for name in PARTITIONS if name != "natural")
        raise DatasetError(
            f"partition='natural' needs data with owners; {examples.name} has none, choose from "
            f"{others}"
        )
    names, parts = partitions.natural(examples.owner)
    sizes = np.array([len(part) for part in parts])
    notes = []
    # A note and no error: real data have owners with one example, who cannot be split.
    if (sizes < min_examples).any():
        left_out = int((sizes < min_examples).sum())
        notes.append(
            f"{left_out} of {len(names)} owners with fewer than {min_examples} examples are left "
            "out."
        )
    # Positions among all owners, in the order of their names.
    kept = np.flatnonzero(sizes >= min_examples)
    if not len(kept):
        raise DatasetError(
            f"min_examples={min_examples} leaves none of {examples.name}'s {len(names)} owners, "
            f"the largest of which has {sizes.max()} examples; lower it"
        )
    if count is not None:
        if not 1 <= count <= len(kept):
            raise DatasetError(
                f"{examples.name} has {len(kept)} natural owners with at least {min_examples} "
                f"examples, but {count} clients are wanted (num_clients + num_new_clients)"
            )
        # Sorted, so that clients stay in the order of their names.
        kept = np.sort(np.random.default_rng([seed, OWNER_CHOICE]).permutation(kept)[:count])
    return names[kept], [parts[k] for k in kept], notes


def _split(
    examples: Examples, parts: Sequence[np.ndarray], options: Mapping[str, Any]
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray] | None]:
    """Split every client's examples, or keep the source's own split.

    Returns:
      ``{"train", "validation", "test"}`` to K index arrays, and those of what is kept for bounds,
      None if nothing is.
    """
    seed, amount = options["seed"], (options["bound_fraction"], options["bound_count"])
    wanted = any(amount)
    # A source's own split is kept for its natural owners only. A partition mixes the source's
    # train and test examples in every client, as PFLlib does.
    keep = options["partition"] == "natural" and options["source_split"]
    given = examples.split if keep else None
    split = functools.partial(
        split_clients,
        validation_fraction=options["validation_fraction"],
        seed=seed,
        by=options["split_by"],
        labels=examples.y,
        validation_count=options["validation_count"],
    )
    kept = None
    if given is None:
        if wanted:
            kept, parts = draw_bound(parts, amount[0], seed, amount[1])
        tests = {name: options[name] for name in ("test_fraction", "test_count")}
        return split(parts, **tests), kept
    splits = {name: [part[given[part] == name] for part in parts] for name in SPLITS}
    if wanted:
        kept, splits["train"] = draw_bound(splits["train"], amount[0], seed, amount[1])
    if not any(map(len, splits["validation"])):
        # Most sources have train and test only: validation is taken from their training examples.
        inner = split(splits["train"], test_fraction=0.0)
        splits.update(train=inner["train"], validation=inner["validation"])
    return splits, kept


def _hold_out(
    names: np.ndarray,
    splits: Mapping[str, Sequence[np.ndarray]],
    bound: Sequence[np.ndarray] | None,
    num_new: int,
    seed: int,
) -> list[Group]:
    """Return the clients that train, and the new ones, chosen at random."""
    if num_new >= len(names):
        raise DatasetError(
            f"num_new_clients={num_new} of {len(names)} clients leave none to train; lower it"
        )
    # Splits do not depend on this draw: with other new clients, everybody keeps the same test
    # examples.
    order = np.random.default_rng([seed, NEW_CLIENTS]).permutation(len(names))
    new = np.isin(np.arange(len(names)), order[:num_new])

    def group(clients: list[int]) -> Group:
        owned = {s: Owned.from_parts(parts[k] for k in clients) for s, parts in splits.items()}
        kept = None if bound is None else Owned.from_parts(bound[k] for k in clients)
        return Group(names[clients], owned, kept)

    return [group(np.flatnonzero(chosen).tolist()) for chosen in (~new, new)]
