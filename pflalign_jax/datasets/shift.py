"""Shifts between clients: features, or the meaning of labels, differ from client to client.

A *feature shift* changes ``x`` alone (covariate shift): a client's images are rotated, change
contrast or brightness, or are noisy. A *label shift* changes ``y`` alone (concept shift): a client
swaps or permutes labels, so that equal examples have different labels in different clients. Both
apply to all splits of a client.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.datasets.base import DatasetError, FeatureShift
from pflalign_jax.random_purposes import FEATURE_SHIFT, LABEL_SHIFT

FEATURE_SHIFTS = ("rotation", "contrast", "brightness", "noise")
LABEL_SHIFTS = ("swap", "permute")

EXAMPLES_AT_ONCE = 256
"""Examples that a device shifts together: all at once would need the whole split in float32."""


def feature_shift(
    x: np.ndarray, num_clients: int, kind: str, strength: float, groups: int | None, seed: int
) -> FeatureShift:
    """Draw every client's feature shift.

    Args:
      x: ``[N, ...]`` features; images ``[N, H, W, C]`` for a rotation.
      num_clients: K.
      kind: one of `FEATURE_SHIFTS`.
      strength: the largest amount, finite and > 0: amounts are uniform in
        ``[-strength, strength)``, for noise in ``[0, strength)``.
      groups: G: each client gets one of G amounts, evenly spaced over that interval from its low
        end (rotation by 180 in 4 groups: -180, -90, 0, 90 degrees). None: each has its own amount.
      seed: of the draws.

    Raises:
      DatasetError: for an unknown kind, a strength or a number of groups out of range, tokens, or a
        rotation of features that are not images.
    """
    check_feature_shift(kind, strength)
    if kind == "rotation" and x.ndim != 4:
        raise DatasetError(
            f"feature_shift='rotation' needs images [N, H, W, C]; x has shape {x.shape}"
        )
    if x.dtype.kind in "iu" and x.dtype.itemsize > 1:
        raise DatasetError(f"feature_shift={kind!r} does not go with tokens")
    rng = np.random.default_rng([seed, FEATURE_SHIFT])
    group = _groups(num_clients, groups, rng)
    positions = rng.random(num_clients) if groups is None else group / groups
    low, high = (0.0, 255.0) if x.dtype == np.uint8 else (float(x.min()), float(x.max()))
    # A standard deviation has no sign.
    least = 0.0 if kind == "noise" else -strength
    amounts = least + positions * (strength - least)
    return FeatureShift(kind, amounts.astype(np.float32), low, high, seed)


def label_shift(
    num_classes: int, num_clients: int, kind: str, groups: int | None, seed: int
) -> np.ndarray:
    """Draw every client's permutation of labels.

    Args:
      num_classes: number of labels, at least 2.
      num_clients: K.
      kind: ``"swap"``: two labels change places; ``"permute"``: all are permuted.
      groups: G: each client gets one of G permutations, the first of which changes nothing. None:
        each client has its own permutation.
      seed: of the draws.

    Returns:
      ``[K, num_classes]`` int32: label ``c`` of client ``k`` becomes ``result[k, c]``.

    Raises:
      DatasetError: for an unknown kind, one class, or a number of groups out of range.
    """
    check_label_shift(kind)
    if num_classes < 2:
        raise DatasetError(f"label_shift={kind!r} needs two labels; the data have {num_classes}")
    rng = np.random.default_rng([seed, LABEL_SHIFT])
    group = _groups(num_clients, groups, rng)
    count = num_clients if groups is None else groups
    maps = np.tile(np.arange(num_classes, dtype=np.int32), (count, 1))
    # With groups, the first group keeps the original labels.
    for g in range(0 if groups is None else 1, count):
        if kind == "swap":
            a, b = rng.choice(num_classes, 2, replace=False)
            maps[g, [a, b]] = maps[g, [b, a]]
        else:
            maps[g] = rng.permutation(num_classes)
    return maps[group]


def check_feature_shift(kind: str, strength: float) -> None:
    """Raise an error for an unknown feature shift, or a strength that no shift can have."""
    if kind not in FEATURE_SHIFTS:
        raise DatasetError(f"feature_shift={kind!r} is unknown; choose from {FEATURE_SHIFTS}")
    if not 0 < strength < np.inf:
        raise DatasetError(
            f"feature_shift_strength={strength} is not allowed; it must be finite and > 0"
        )


def check_label_shift(kind: str) -> None:
    """Raise an error for an unknown label shift."""
    if kind not in LABEL_SHIFTS:
        raise DatasetError(f"label_shift={kind!r} is unknown; choose from {LABEL_SHIFTS}")


def _groups(num_clients: int, groups: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return ``[K]`` group numbers, assigned at random; sizes of groups differ by at most one."""
    if groups is None:
        return np.arange(num_clients)
    if not 1 <= groups <= num_clients:
        raise DatasetError(
            f"shift_groups={groups} is not allowed; use 1..{num_clients}, the number of clients"
        )
    return rng.permutation(np.arange(num_clients) % groups)


@functools.partial(jax.jit, static_argnames=("kind", "low", "high"))
def shift_features(
    x: jax.Array,
    amounts: jax.Array,
    example: jax.Array,
    seed: jax.Array,
    *,
    kind: str,
    low: float,
    high: float,
) -> jax.Array:
    """Return shifted examples, in the dtype of ``x``; see `FeatureShift`.

    Args:
      x: ``[N, ...]``.
      amounts: ``[N]`` float32, of each example's client.
      example: ``[N]`` int32, the example's number in the dataset. The noise is keyed by it, so that
        an example has the same noise whatever device holds it.
      seed: int32 scalar.
      kind, low, high: of the `FeatureShift`.
    """
    middle = 0.5 * (low + high)

    def shifted(x: jax.Array, amount: jax.Array, example: jax.Array) -> jax.Array:
        value = x.astype(jnp.float32)
        if kind == "rotation":
            value = _rotated(value, amount)
        elif kind == "contrast":
            value = middle + jnp.exp2(amount) * (value - middle)
        elif kind == "brightness":
            value = value + amount * (high - low)
        else:
            # Keyed by the example: evaluation and training see the same noise in every round.
            key = jax.random.fold_in(jax.random.key(seed), example)
            value = value + amount * (high - low) * jax.random.normal(key, x.shape)
        # Bytes stay bytes, with the range of an image; floats may leave their range.
        if jnp.issubdtype(x.dtype, jnp.integer):
            value = jnp.clip(jnp.round(value), low, high)
        return value.astype(x.dtype)

    return jax.lax.map(
        lambda args: shifted(*args), (x, amounts, example), batch_size=EXAMPLES_AT_ONCE
    )


def _rotated(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Rotate ``[H, W, C]`` around its middle; linear between pixels, edge pixels are repeated."""
    height, width, _ = image.shape
    # For every pixel of the result, the point of the original that it shows: turned back by the
    # angle, with y pointing down.
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - cy, jnp.arange(width) - cx, indexing="ij")
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows, columns = cy + cos * y + sin * x, cx - sin * y + cos * x

    def plane(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(channel, [rows, columns], 1, mode="nearest")

    return jax.vmap(plane, in_axes=-1, out_axes=-1)(image)
