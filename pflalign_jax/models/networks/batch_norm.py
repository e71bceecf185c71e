"""Batch normalisation whose running statistics are parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with four parameters per channel.

    ``scale`` and ``bias`` are learnt; ``mean`` and ``var`` are the running statistics. All four are
    leaves of the parameter tree, so an algorithm treats the statistics like weights: federated
    averaging averages them, FedBN keeps them on the client, alignment aligns them.

    In training (with a mask), features are normalised with the mean and variance of the batch's
    real examples, padding comes out as ``bias``, and the running statistics do not enter the
    output. The backward pass gives the two leaves the gradients ``mean - batch mean`` and
    ``var - batch variance``, independent of the loss and its scale, as if
    ``½ (leaf - batch statistic)²`` were added to the loss; the value of the loss does not change.
    Under SGD with step size η they are therefore exponential averages with decay ``1 - η``: their
    rate is the step size of the local optimiser. With momentum, Adam, weight decay or proximal
    terms, which treat them like any parameter, they are no plain averages. A batch without real
    examples gives them a gradient of 0.

    In evaluation (without a mask), features are normalised with the running statistics, and an
    example's output does not depend on the other examples. An optimiser may push ``var`` below 0;
    it is clamped at 0 where it is used. Variances are divided by the number of values, not by one
    less.

    Statistics are computed in float32 whatever the dtype of the features; with
    `with_compute_dtype` the two leaves are rounded to the compute dtype.

    Attributes:
      epsilon: added to the variance.

    References:
      Ioffe and Szegedy, arXiv:1502.03167. Li et al. (FedBN), arXiv:2102.07623.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map ``[B, ..., C]`` to the same shape; ``mask`` ``[B]`` in training, else None."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        features = x.astype(jnp.float32)
        if mask is None:
            out = _scaled(features - _along(mean, x), jnp.maximum(var, 0) + self.epsilon, scale)
            return (out + _along(bias, x)).astype(x.dtype)
        batch_mean, centred, batch_var = _batch_statistics(features, mask)
        out = _scaled(centred, batch_var + self.epsilon, scale) + _along(bias, x)
        # Without real examples the statistics are their own targets: their gradient is then 0.
        has_real = jnp.any(mask > 0)
        targets = (jnp.where(has_real, batch_mean, mean), jnp.where(has_real, batch_var, var))
        return _follow(out, (mean, var), targets).astype(x.dtype)


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``[C]`` values with as many axes as ``x``, in float32."""
    return values.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + values.shape)


def _scaled(centred: jax.Array, var: jax.Array, scale: jax.Array) -> jax.Array:
    """Return ``scale * centred / sqrt(var)``, with variance and scale ``[C]``."""
    # The factor is formed per channel first, so that features are multiplied once.
    return centred * _along(scale * lax.rsqrt(var.astype(jnp.float32)), centred)


def _batch_statistics(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the mean ``[C]``, ``x`` minus the mean, and the variance ``[C]`` of real examples.

    Padding is set to 0 in ``x`` minus the mean: divided by a small standard deviation, layer after
    layer, it could grow without bound.
    """
    axes = tuple(range(x.ndim - 1))
    real = mask.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
    # Values per channel: real examples times positions in an example.
    count = jnp.maximum(real.sum(), 1) * (x.size // (x.shape[0] * x.shape[-1]))
    mean = jnp.sum(x * real, axis=axes) / count
    centred = (x - _along(mean, x)) * real
    return mean, centred, jnp.sum(centred**2, axis=axes) / count


Statistics = tuple[jax.Array, jax.Array]
"""Mean and variance, each ``[C]``."""


# A pure function cannot store statistics. A gradient of its own is the one way out of a layer to
# its parameters; the optimiser then moves the statistics.
@jax.custom_vjp
def _follow(out: jax.Array, leaves: Statistics, targets: Statistics) -> jax.Array:
    """Return ``out``; the gradient of ``leaves`` is ``leaves - targets``, that of targets 0."""
    del leaves, targets
    return out


def _follow_forward(
    out: jax.Array, leaves: Statistics, targets: Statistics
) -> tuple[jax.Array, tuple[Statistics, Statistics]]:
    return out, (leaves, targets)


def _follow_backward(
    residuals: tuple[Statistics, Statistics], grad: jax.Array
) -> tuple[jax.Array, Statistics, Statistics]:
    leaves, targets = residuals
    gaps = jax.tree.map(
        lambda leaf, target: leaf - lax.stop_gradient(target).astype(leaf.dtype), leaves, targets
    )
    return grad, gaps, jax.tree.map(jnp.zeros_like, targets)


_follow.defvjp(_follow_forward, _follow_backward)
