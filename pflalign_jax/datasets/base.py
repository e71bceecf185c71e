"""What a federated dataset is: flat arrays of examples and, per split, who owns which of them.

Shape letters used everywhere: ``K`` clients, ``C`` cohort, ``D`` devices, ``N`` examples,
``B`` batch, ``T`` local steps.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.errors import UserError

SPLITS = ("train", "validation", "test")

TASK_NAMES = ("classification", "binary", "multilabel", "regression", "next_token")
"""What data can be for: the names of `pflalign_jax.tasks.TASKS`, which is built on this module."""


class DatasetError(UserError, ValueError):
    """Data that cannot be used; the message names the source, the bad value and what to do."""


class Examples(NamedTuple):
    """A dataset as a loader read it, before a partition gives examples to clients.

    Attributes:
      name: for messages and files, e.g. ``"cifar10"``.
      x: ``[N, ...]`` features as stored: uint8 images ``[N, H, W, C]``, float32, flags or small
        counts ``[N, F]`` of uint8, or int32 tokens ``[N, L]``.
      y: ``[N]`` int32 labels in ``0..num_classes-1``; ``[N, L]`` for sequences, of next tokens
        with `IGNORED` (-1) where nothing is predicted. Of other tasks
        (`pflalign_jax.tasks`): ``[N]`` or ``[N, M]`` float32 numbers, ``[N, L]`` labels 0 or 1.
      num_classes: number of labels; 0 if ``y`` are numbers to predict, or several labels of each
        example.
      owner: ``[N]`` natural owners, ints or strings; None if there are none.
      split: ``[N]`` str, the source's own split, values in `SPLITS`; None if it has none.
      mean, std: the fixed normalisation, ``(x - mean) / std``. None: to [-1, 1] for uint8 images,
        no normalisation for everything else.
      notes: what a user should know about how these files were read, one sentence each.
      split_is_final: whether a split without validation examples stays as it is unless the user
        asks for some; else they are taken from its training examples.
      source: the file or folder they were read from, for messages; None: ``name`` says it.
      task: what they are for, one of `TASK_NAMES`, where the loader or the user knows it; None:
        what ``y`` leaves no doubt about (`pflalign_jax.tasks.infer_task`).
      class_names: what the labels ``0..num_classes-1`` are called, all different; of several labels
        of each example, what these are called. None: not known, or numbers.
      feature_names: of ``x [N, F]``, names of the columns; None: not known.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    num_classes: int
    owner: np.ndarray | None = None
    split: np.ndarray | None = None
    mean: np.ndarray | float | None = None
    std: np.ndarray | float | None = None
    notes: tuple[str, ...] = ()
    split_is_final: bool = False
    source: str | None = None
    task: str | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None


class Owned(NamedTuple):
    """Which examples of a split each client owns, as a flat list with offsets.

    A flat list and not K arrays, because a million small arrays would take much memory and time.

    Attributes:
      indices: ``[N_split]`` int64, positions in the dataset's ``x`` and ``y``, grouped by client.
      offsets: ``[K + 1]`` int64, ``offsets[0] == 0``, never decreasing; client ``k`` owns
        ``indices[offsets[k]:offsets[k + 1]]``.
    """

    indices: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_parts(cls, parts: Iterable[np.ndarray]) -> "Owned":
        """Return K index arrays, one of each client, as one flat list."""
        parts = list(parts)
        # The empty array in front keeps int64 where there are no clients or no examples.
        indices = np.concatenate([np.zeros(0, np.int64), *parts])
        return cls(indices, np.cumsum([0, *map(len, parts)]))

    @property
    def sizes(self) -> np.ndarray:
        """``[K]`` int64, how many examples each client owns."""
        return np.diff(self.offsets)

    def of_client(self, client: int) -> np.ndarray:
        """Return ``[n]`` int64, the examples of the client at this position."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def of_clients(self, clients: Iterable[int]) -> "Owned":
        """Return what the clients at these positions own, in this order."""
        return Owned.from_parts(self.of_client(k) for k in clients)


class FeatureShift(NamedTuple):
    """A change of every client's features, applied on the device that holds them.

    Attributes:
      kind: one of `pflalign_jax.datasets.shift.FEATURE_SHIFTS`.
      amounts: ``[K]`` float32. Rotation: degrees, anticlockwise. Contrast: the distance of x from
        the middle of its range is multiplied by ``2 ** amount``. Brightness: what is added to x,
        as a share of the range. Noise: the standard deviation of what is added, as a share of the
        range.
      low, high: the range of x; integers are clipped to it.
      seed: seed of the noise.
    """

    kind: str
    amounts: np.ndarray
    low: float
    high: float
    seed: int


class FederatedDataset(NamedTuple):
    """Examples of K clients on the host. Immutable; treat the arrays as read-only.

    Attributes:
      name: for messages and files, e.g. ``"digits"``.
      x: ``[N, ...]`` features as stored (uint8 images stay uint8; normalised on the device).
      y: ``[N]`` int32 labels in ``0..num_classes-1``; of other tasks as in `Examples`.
      num_classes: number of labels; 0 if ``y`` are numbers.
      splits: ``{"train", "validation", "test"}`` to the examples that each client owns; no
        example belongs to two splits or two clients.
      client_names: ``[K]`` str, the natural owner or ``"0".."K-1"``.
      client_ids: ``[K]`` int32, all different. Random draws are keyed by these, so that results do
        not depend on the order of clients. ``0..K-1`` unless clients were reordered.
      mean, std: normalisation on the device, ``(x - mean) / std`` in float32; scalars or arrays
        that broadcast against one example.
      shift: how the clients' features differ; None: they do not.
      new_clients: clients that never train, over the same ``x`` and ``y``; None: there are none.
      notes: what a user should know about how the data were read and partitioned.
      options: keyword arguments of `partition_examples` that made it, with what every None stood
        for; None for a dataset that was made otherwise.
      task: what the data are for, as in `Examples`; None: as `pflalign_jax.tasks.infer_task` finds.
      bound: further examples of each client, drawn at random, that nothing reads but
        `pflalign_jax.certificates`: no training, score, choice or normalisation. No split has them;
        None: there are none.
      class_names, feature_names: as in `Examples`. New data are predicted under these names, long
        after the files that had them: a table may have its columns in another order.
      elsewhere: whether the examples are with their owners: only shapes, types and how many
        each client owns are real, ``x`` and ``y`` are zeros.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    num_classes: int
    splits: Mapping[str, Owned]
    client_names: np.ndarray
    client_ids: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    shift: FeatureShift | None = None
    new_clients: "FederatedDataset | None" = None
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    task: str | None = None
    bound: Owned | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    elsewhere: bool = False

    @property
    def num_clients(self) -> int:
        """Number of clients, K."""
        return len(self.client_names)
