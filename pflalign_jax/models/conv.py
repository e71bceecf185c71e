"""Convolution and pooling that are fast where `lax.conv` is not: inside loops on a CPU.

Under `scan`, `map` or `vmap` XLA's CPU backend runs `lax.conv` about ten times slower than the
same arithmetic written as patches and one matrix product.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def patch_conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvDimensionNumbers | None = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jnp.dtype | None = None,
) -> jax.Array:
    """Two-dimensional convolution as patches and one matrix product.

    A drop-in for `lax.conv_general_dilated` in ``flax.linen.Conv(conv_general_dilated=...)``, so
    that parameters have flax's names, shapes and initialisation.

    Args:
      lhs: ``[B, H, W, C_in]`` images.
      rhs: ``[h, w, C_in, C_out]`` kernel.
      window_strides: two strides.
      padding: ``"SAME"``, ``"VALID"`` or two pairs.
      lhs_dilation, rhs_dilation: must be 1.
      dimension_numbers: must be flax's channels-last layout.
      feature_group_count: must be 1.
      precision, preferred_element_type: passed to the product.

    Returns:
      ``[B, H', W', C_out]``.

    Raises:
      NotImplementedError: for dilation, groups or another layout; use ``lax.conv`` there.
    """
    ones = (None, (1, 1), [1, 1], 1)
    if lhs_dilation not in ones or rhs_dilation not in ones or feature_group_count != 1:
        raise NotImplementedError(
            "patch_conv has no dilation and no groups; got "
            f"{lhs_dilation=}, {rhs_dilation=}, {feature_group_count=}"
        )
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    if lhs.ndim != 4 or dimension_numbers not in (None, numbers):
        raise NotImplementedError(
            f"patch_conv takes [B, H, W, C] images with channels last; got {lhs.shape} and "
            f"{dimension_numbers}"
        )
    height, width, channels, features = rhs.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], (height, width), window_strides, padding)
    lhs = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    down, right = window_strides
    out_height = (lhs.shape[1] - height) // down + 1
    out_width = (lhs.shape[2] - width) // right + 1
    patches = jnp.concatenate(
        [
            lhs[:, i : i + down * out_height : down, j : j + right * out_width : right]
            for i in range(height)
            for j in range(width)
        ],
        axis=-1,
    )
    return jnp.einsum(
        "bhwp,pf->bhwf",
        patches,
        rhs.reshape(height * width * channels, features),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Return the maximum over ``size`` x ``size`` windows, ``[B, H // size, W // size, C]``.

    Rows and columns left over at the end are dropped, as ``flax.linen.max_pool`` does with
    ``"VALID"`` padding. Between equal maxima the gradient is shared.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    return x.reshape(batch, rows, size, columns, size, channels).max(axis=(2, 4))
