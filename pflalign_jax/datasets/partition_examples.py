"""Deal a dataset's examples out to clients: partition, splits, new clients, shifts."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from pflalign_jax.datasets import partition as partitions
from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples, FederatedDataset
from pflalign_jax.datasets.build import assemble, group_of
from pflalign_jax.datasets.partition_file import read_partition, refuse_other_data
from pflalign_jax.datasets.split import own, split_clients


class Partitioner(NamedTuple):
    """A partition by name.

    Attributes:
      function: ``(labels, num_clients, *arguments, seed) -> K index arrays``.
      defaults: its own arguments, in order, as `partition_examples` calls them.
    """

    function: Callable[..., list[np.ndarray]]
    defaults: Mapping[str, Any]


def _natural(owners):
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
"""All partitions. What is not among a partition's own arguments does not go with it."""


class PartitionOptions(TypedDict, total=False):
    """The keyword arguments of `partition_examples`, which every named dataset takes."""

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
    validation_fraction: float
    test_fraction: float
    validation_count: int | None
    test_count: int | None
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
    validation_fraction: float = 0.1,
    test_fraction: float = 0.25,
    validation_count: int | None = None,
    test_count: int | None = None,
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
    """Return a federated dataset of the examples.

    Args:
      examples: as a loader returned them.
      num_clients: K, clients that train; None: 20, or with natural owners all. Fewer natural
        owners than there are, are chosen at random.
      partition: one of `PARTITIONS`; None: ``"natural"`` where examples have owners, else
        ``"dirichlet"``.
      alpha, classes_per_client, shards_per_client, sigma, exponent: of the partitions that take
        them, see `pflalign_jax.datasets.partition`; None: the defaults in `PARTITIONS`.
      min_examples: examples that every client has at least, all splits together: guaranteed by
        partitions that take it, checked for the others; natural owners with fewer are left out.
      partition_file: a ``partition.npz`` that `save_partition` wrote. It says who owns what in
        which split; then no argument above or below about it counts.
      num_new_clients: clients more, or natural owners, held out whole: they never train.
      validation_fraction, test_fraction, validation_count, test_count: held out inside every
        client, see `split_clients`. A source's own test split is kept under the natural partition.
      split_by: ``"stratified"``, ``"random"`` or ``"temporal"``, see `split_clients`; None:
        temporal for sequences of tokens, else stratified.
      source_split: False pools the source's splits and splits anew, also with natural owners;
        other partitions always do.
      feature_shift, feature_shift_strength, label_shift, shift_groups: see
        `pflalign_jax.datasets.shift`; new clients are shifted like the others.
      normalise: ``"fixed"``: constants of the dataset; ``"train"``: mean and standard deviation of
        each channel (the last axis) over the training examples of all clients.
      mean, std: other constants, scalars or one for each channel, in the units of x as stored.
      fraction: seeded random part of all examples to use, in (0, 1].
      seed: of the partition, the splits, the choice of new clients and the shifts.

    Raises:
      DatasetError: naming the argument, its value and what to do.
    """
    examples = _part_of(examples, fraction, seed)
    if num_new_clients < 0:
        raise DatasetError(f"num_new_clients={num_new_clients} is not allowed; it must be >= 0")
    if partition_file is not None:
        groups = read_partition(partition_file, examples)
    else:
        if partition is None:
            partition = "dirichlet" if examples.owner is None else "natural"
        if split_by is None:
            split_by = "stratified" if examples.y.ndim == 1 else "temporal"
        own_arguments = {
            "alpha": alpha,
            "classes_per_client": classes_per_client,
            "shards_per_client": shards_per_client,
            "sigma": sigma,
            "exponent": exponent,
            "min_examples": min_examples,
        }
        arguments = _arguments(partition, own_arguments)
        if partition == "natural":
            wanted = None if num_clients is None else num_clients + num_new_clients
            names, parts, notes = _owners(examples, wanted, arguments["min_examples"], seed)
            examples = examples._replace(notes=(*examples.notes, *notes))
        else:
            wanted = (20 if num_clients is None else num_clients) + num_new_clients
            labels = examples.y if examples.y.ndim == 1 else examples.y[:, 0]
            parts = PARTITIONS[partition].function(labels, wanted, *arguments.values(), seed)
            names = np.arange(wanted).astype(str)
            _refuse_small(parts, min_examples, partition)

        def split(parts, validation_fraction, test_fraction):
            return split_clients(
                parts,
                validation_fraction,
                test_fraction,
                seed,
                by=split_by,
                labels=examples.y,
                validation_count=validation_count,
                test_count=test_count if test_fraction else None,
            )

        if partition == "natural" and source_split and examples.split is not None:
            given = {s: [part[examples.split[part] == s] for part in parts] for s in SPLITS}
            splits = {s: own(owned) for s, owned in given.items()}
            if not len(splits["validation"].indices):
                inner = split(given["train"], validation_fraction, 0.0)
                splits.update(train=inner["train"], validation=inner["validation"])
        else:
            splits = split(parts, validation_fraction, test_fraction)
        groups = _hold_out(names, splits, num_new_clients, seed)
    dataset = assemble(examples, groups, seed, normalise=normalise, mean=mean, std=std,
                       feature_shift=feature_shift, strength=feature_shift_strength,
                       label_shift=label_shift, shift_groups=shift_groups)  # fmt: skip
    if partition_file is not None:
        refuse_other_data(partition_file, dataset)
    return dataset


def _part_of(examples, fraction, seed):
    """Return a seeded random part of the examples, in their order."""
    if not 0 < fraction <= 1:
        raise DatasetError(f"fraction={fraction} is not allowed; it must be in (0, 1]")
    if fraction == 1:
        return examples
    order = np.random.default_rng(seed).permutation(len(examples.y))
    kept = np.sort(order[: round(fraction * len(examples.y))])
    per_example = {"x": examples.x, "y": examples.y, "owner": examples.owner,
                   "split": examples.split}  # fmt: skip
    return examples._replace(**{k: a[kept] for k, a in per_example.items() if a is not None})


def _arguments(partition, given):
    """Return the partition's own arguments; refuse those that do not go with it."""
    if partition not in PARTITIONS:
        close = difflib.get_close_matches(str(partition), PARTITIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"partition={partition!r} is unknown; {hint}Choose from {tuple(PARTITIONS)}"
        )
    defaults = PARTITIONS[partition].defaults
    for name, value in given.items():
        if value is not None and name not in (*defaults, "min_examples"):
            takes = f"takes {', '.join(defaults)}" if defaults else "takes none of these arguments"
            raise DatasetError(
                f"{name}={value} does not go with partition={partition!r}, which {takes}"
            )
    return {k: default if given[k] is None else given[k] for k, default in defaults.items()}


def _refuse_small(parts, min_examples, partition):
    smallest = min(map(len, parts))
    if min_examples is not None and smallest < min_examples:
        raise DatasetError(
            f"partition={partition!r} cannot guarantee min_examples={min_examples}: a client has "
            f"{smallest}; lower min_examples or num_clients"
        )


def _owners(examples, wanted, min_examples, seed):
    """Return names and parts of the natural owners that can be clients, and notes on the others."""
    if examples.owner is None:
        others = tuple(name for name in PARTITIONS if name != "natural")
        raise DatasetError(
            f"partition='natural' needs data with owners; {examples.name} has none, choose from "
            f"{others}"
        )
    names, parts = partitions.natural(examples.owner)
    sizes = np.array([len(part) for part in parts])
    notes = []
    if (sizes < min_examples).any():
        left_out = int((sizes < min_examples).sum())
        notes.append(
            f"{left_out} of {len(names)} owners with fewer than {min_examples} examples are left "
            "out."
        )
    kept = np.flatnonzero(sizes >= min_examples)
    if not len(kept):
        raise DatasetError(
            f"min_examples={min_examples} leaves none of {examples.name}'s {len(names)} owners, "
            f"the largest of which has {sizes.max()} examples; lower it"
        )
    if wanted is not None:
        if not 1 <= wanted <= len(kept):
            raise DatasetError(
                f"{examples.name} has {len(kept)} natural owners with at least {min_examples} "
                f"examples, but {wanted} clients are wanted (num_clients + num_new_clients)"
            )
        kept = np.sort(np.random.default_rng([seed, 3]).permutation(kept)[:wanted])
    return names[kept], [parts[k] for k in kept], notes


def _hold_out(names, splits, num_new, seed):
    """Return the `Group` of clients that train and the one of new clients."""
    if num_new >= len(names):
        raise DatasetError(
            f"num_new_clients={num_new} of {len(names)} clients leave none to train; lower it"
        )
    order = np.random.default_rng([seed, 4]).permutation(len(names))
    new = np.isin(np.arange(len(names)), order[:num_new])
    return [group_of(names, splits, np.flatnonzero(chosen)) for chosen in (~new, new)]
