"""What a federated dataset is: flat arrays of examples and, per split, who owns which of them.

Shape letters used everywhere: ``K`` clients, ``C`` cohort, ``D`` devices, ``N`` examples,
``B`` batch, ``T`` local steps.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pflalign_jax.errors import UserError

SPLITS = ("train", "validation", "test")


class DatasetError(UserError, ValueError):
    """Data that cannot be used; the message names the source, the bad value and what to do."""


class Examples(NamedTuple):
    """A dataset as it was read, before it is dealt out to clients.

    Attributes:
      name: for messages and files, e.g. ``"cifar10"``.
      x: ``[N, ...]`` features as stored: uint8 images ``[N, H, W, C]``, float32, or int32 tokens
        ``[N, L]``.
      y: ``[N]`` int32 labels in ``0..num_classes-1``; ``[N, L]`` for sequences.
      num_classes: number of labels.
      owner: ``[N]`` natural owners, ints or strings; None where there are none.
      split: ``[N]`` str, the source's own split, values in `SPLITS`; None where it has none.
      mean, std: the fixed normalisation, ``(x - mean) / std``; None: [-1, 1] for uint8 images,
        and as they are for everything else.
      notes: what a user should know about how these files were read, one sentence each.
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


class Owned(NamedTuple):
    """Which examples of a split each client owns, as a flat list with offsets.

    Client ``i`` owns ``indices[offsets[i]:offsets[i + 1]]``.

    Attributes:
      indices: ``[N_split]`` int64, positions in the dataset's ``x`` and ``y``, grouped by client.
      offsets: ``[K + 1]`` int64, ``offsets[0] == 0``, never decreasing.
    """

    indices: np.ndarray
    offsets: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """``[K]`` int64, how many examples each client owns."""
        return np.diff(self.offsets)


class FeatureShift(NamedTuple):
    """A change of every client's features, applied on the device that holds them.

    Attributes:
      kind: one of `pflalign_jax.datasets.shift.FEATURE_SHIFTS`.
      amounts: ``[K]`` float32. Rotation: degrees, anticlockwise. Contrast: x is multiplied around
        the middle of its range by ``2 ** amount``. Brightness and noise: what is added, or the
        standard deviation of what is added, as a share of the range.
      low, high: the range of x, to which integers are clipped.
      seed: of the noise.
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
      y: ``[N]`` int32 labels in ``0..num_classes-1``.
      num_classes: number of labels.
      splits: ``{"train", "validation", "test"}`` to the examples that each client owns; no
        example belongs to two splits or two clients.
      client_names: ``[K]`` str, the natural owner or ``"0".."K-1"``.
      client_ids: ``[K]`` int32, all different: the identity that random draws are keyed by, so
        that results do not depend on the order of clients. ``0..K-1`` unless clients were
        reordered.
      mean, std: normalisation on the device, ``(x - mean) / std`` in float32; scalars or arrays
        that broadcast against one example.
      shift: what differs between clients' features; None: nothing.
      new_clients: clients that never train, over the same ``x`` and ``y``; None: there are none.
      notes: what a user should know about how the data were read and dealt out.
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

    @property
    def num_clients(self) -> int:
        """Number of clients, K."""
        return len(self.client_names)
