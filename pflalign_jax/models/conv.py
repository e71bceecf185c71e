"""Convolution and pooling that are fast where `lax.conv` is not: inside loops on a CPU.

Under `scan`, `map` or `vmap` XLA's CPU backend runs `lax.conv` about ten times slower than the
same arithmetic written as patches and one matrix product.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def check_images(name: str, x: jax.Array, smallest: int = 1) -> None:
    """Raise ValueError unless features are images ``[B, H, W, C]`` of at least this side."""
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"{name} takes images [B, H, W, C] with sides of at least {smallest}; got features of "
            f"shape {x.shape}. Grey images need a last axis, x[..., None]; other features a model "
            "like mlp"
        )


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

    It replaces `lax.conv_general_dilated` in ``flax.linen.Conv(conv_general_dilated=...)``, so that
    parameters have flax's names, shapes and initialisation. Gradients and derivatives of gradients
    (Hessian-vector products) work; `jax.jvp` of the convolution itself does not, use ``lax.conv``
    for that.

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
    no_dilation = (None, (1, 1), [1, 1], 1)
    if (
        lhs_dilation not in no_dilation
        or rhs_dilation not in no_dilation
        or feature_group_count != 1
    ):
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
    tile = _tile(height * width * channels, out_width)
    if tile > 1:
        # Copies of the kernel, each one stride further to the right, side by side as more
        # channels out: a product with one wider patch then gives `tile` neighbouring outputs.
        shifted = [
            jnp.pad(rhs, ((0, 0), (right * i, right * (tile - 1 - i)), (0, 0), (0, 0)))
            for i in range(tile)
        ]
        rhs = jnp.stack(shifted, axis=3)
    windows = _Windows(
        (height, rhs.shape[1]), (down, right * tile), (out_height, out_width // tile)
    )
    kernel = rhs.reshape(-1, tile * features)
    out = _product(lhs, kernel, windows, precision, preferred_element_type)
    return out.reshape(len(lhs), out_height, out_width, features)


class _Windows(NamedTuple):
    """Which windows to cut out of an image: their size, strides, and number, down and right."""

    size: tuple[int, int]
    strides: tuple[int, int]
    count: tuple[int, int]  # type: ignore[assignment]  # hides tuple.count


def _tile(inner: int, out_width: int) -> int:
    """Return how many neighbouring outputs one patch serves.

    A matrix product with a short inner dimension is slow. A patch for four outputs is hardly
    longer than a patch for one output, and there are four times fewer of them.
    """
    return 4 if inner < 64 and out_width % 4 == 0 else 1


def _patches(x: jax.Array, windows: _Windows) -> jax.Array:
    """Return ``[B, *count, size * C]``; columns first, so that longer runs are copied."""
    for axis in (2, 1):
        size, stride, count = (values[axis - 1] for values in windows)
        x = jnp.concatenate([_slice(x, i, stride, count, axis) for i in range(size)], axis=-1)
    return x


def _patches_at_once(x: jax.Array, windows: _Windows) -> jax.Array:
    """Return `_patches`, written so that the transpose is one sum of shifted slices."""
    (height, width), (down, right), (rows, columns) = windows
    lines = [_slice(x, i, down, rows, axis=1) for i in range(height)]
    slices = [_slice(line, j, right, columns, axis=2) for line in lines for j in range(width)]
    return jnp.concatenate(slices, axis=-1)


def _slice(x: jax.Array, start: int, stride: int, count: int, axis: int) -> jax.Array:
    return lax.slice_in_dim(x, start, start + stride * (count - 1) + 1, stride, axis)


# The gradient is written by hand for two reasons: the automatic one would transpose `_patches`
# step by step, and it would choose the layout of the products (see `_product_backward`).
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(
    x: jax.Array,
    kernel: jax.Array,
    windows: _Windows,
    precision: lax.PrecisionLike,
    dtype: jnp.dtype | None,
) -> jax.Array:
    """Return ``[B, *count, N]``, patches of ``x`` times ``kernel`` ``[P, N]``."""
    return _product_forward(x, kernel, windows, precision, dtype)[0]


def _product_forward(
    x: jax.Array,
    kernel: jax.Array,
    windows: _Windows,
    precision: lax.PrecisionLike,
    dtype: jnp.dtype | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    # Without the barrier, XLA fuses what computes x into the patches, and computes it anew for
    # every column of the window.
    patches = _patches(lax.optimization_barrier(x), windows)
    out = jnp.matmul(patches, kernel, precision=precision, preferred_element_type=dtype)
    # Of x the backward pass needs the shape alone, so x itself need not be kept.
    return out, (patches, kernel, jnp.zeros_like(x))


def _product_backward(
    windows: _Windows,
    precision: lax.PrecisionLike,
    dtype: jnp.dtype | None,
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of ``x`` and ``kernel``."""
    patches, kernel, x = residuals
    dot = functools.partial(jnp.matmul, precision=precision, preferred_element_type=dtype)
    flat, grad = patches.reshape(-1, patches.shape[-1]), grad.reshape(-1, grad.shape[-1])
    # XLA's products on a CPU are up to twice as fast if the longer axis of the result is the last.
    # Without the barrier, XLA would simplify the transpose of the product away.
    if kernel.shape[0] > kernel.shape[1]:
        kernel_grad = lax.optimization_barrier(dot(grad.T, flat)).T
    else:
        kernel_grad = dot(flat.T, grad)
    patches_grad = dot(grad, kernel.T).astype(x.dtype).reshape(patches.shape)
    (x_grad,) = jax.linear_transpose(lambda x: _patches_at_once(x, windows), x)(patches_grad)
    return x_grad, kernel_grad.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Return the maximum over ``size`` x ``size`` windows, ``[B, H // size, W // size, C]``.

    Rows and columns left over at the end are dropped, as ``flax.linen.max_pool`` does with
    ``"VALID"`` padding. Between equal maxima the gradient is shared.
    """
    # A reshape instead of `lax.reduce_window`: on a CPU that takes five times as long or more, most
    # of it in the gradient.
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    return _max_of_windows(x.reshape(batch, rows, size, columns, size, channels))


@jax.custom_jvp
def _max_of_windows(x: jax.Array) -> jax.Array:
    """Return the maximum of each window of ``[B, rows, size, columns, size, C]``."""
    return x.max(axis=(2, 4))


@_max_of_windows.defjvp
def _max_of_windows_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Share the tangent between equal maxima, as `jnp.max` would, with less work."""
    (x,), (tangent,) = primals, tangents
    largest = _max_of_windows(x)
    # The number of equal maxima in each window. A sum over axes 2 and 4 would take most of the time
    # of pooling; a sum of slices takes little.
    equal = sum(
        (x[:, :, i, :, j] == largest).astype(x.dtype)
        for i in range(x.shape[2])
        for j in range(x.shape[4])
    )
    chosen = jnp.where(x == largest[:, :, None, :, None], tangent, 0)
    return largest, chosen.sum(axis=(2, 4)) / equal
