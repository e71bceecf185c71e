"""Batch normalisation whose running statistics are parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with four parameters per channel.

    ``scale`` and ``bias`` are learnt; ``mean`` and ``var`` are the running statistics. They are
    leaves of the same parameter tree, so whatever an algorithm does with parameters it does with
    them: federated averaging averages statistics as it averages weights, FedBN keeps them on the
    client, alignment aligns them.

    In training (with a mask) the statistics of the batch's real examples normalise, padding comes
    out as ``bias``, and the running statistics do not enter the output. The backward pass hands
    ``mean - batch mean`` and ``var - batch variance`` to the two leaves as their gradient,
    whatever the loss is and however it is scaled, as if ``½ (leaf - batch statistic)²`` were added
    to the loss; its value does not change. Under SGD with step size η they are thus exponential
    averages with decay ``1 - η``: they follow the step size of the local optimiser and have no
    rate of their own. Momentum, Adam, weight decay and proximal terms treat them like any
    parameter, and then they are no plain average. A batch without real examples gives them a
    gradient of 0.

    In evaluation (without a mask) the running statistics normalise, and an example's output does
    not depend on the others. ``var``, which an optimiser may push below 0, is clamped at 0 where
    it is used. Variances are divided by the number of values, not by one less.

    Statistics are computed in float32 whatever the type of the features; under
    `with_compute_dtype` the two leaves are seen to the precision of the type computed in.

    Attributes:
      epsilon: added to the variance.

    References:
      Ioffe and Szegedy, arXiv:1502.03167. Li et al. (FedBN), arXiv:2102.07623.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, mask=None):
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
        some = jnp.any(mask > 0)
        out = _follow(
            out,
            (mean, var),
            (jnp.where(some, batch_mean, mean), jnp.where(some, batch_var, var)),
        )
        return out.astype(x.dtype)


def _along(values, x):
    """Return ``[C]`` values with as many axes as ``x``, in float32."""
    return values.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + values.shape)


def _scaled(centred, var, scale):
    return centred * _along(scale * lax.rsqrt(var.astype(jnp.float32)), centred)


def _batch_statistics(x, mask):
    """Return mean ``[C]``, ``x`` less its mean, variance ``[C]``, of real examples; others are 0.

    Zeros in place of padding keep it from growing, layer by layer, where the variance is small.
    """
    axes = tuple(range(x.ndim - 1))
    real = mask.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
    count = jnp.maximum(real.sum(), 1) * (x.size // (x.shape[0] * x.shape[-1]))
    mean = jnp.sum(x * real, axis=axes) / count
    centred = (x - _along(mean, x)) * real
    return mean, centred, jnp.sum(centred**2, axis=axes) / count


@jax.custom_vjp
def _follow(out, leaves, targets):
    """Return ``out``; the gradient of ``leaves`` is ``leaves - targets``, that of targets 0."""
    del leaves, targets
    return out


def _follow_forward(out, leaves, targets):
    return out, (leaves, targets)


def _follow_backward(saved, grad):
    leaves, targets = saved
    gaps = jax.tree.map(
        lambda leaf, target: leaf - lax.stop_gradient(target).astype(leaf.dtype), leaves, targets
    )
    return grad, gaps, jax.tree.map(jnp.zeros_like, targets)


_follow.defvjp(_follow_forward, _follow_backward)
