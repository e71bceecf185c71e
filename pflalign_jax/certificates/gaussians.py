"""Gaussian distributions over a model's parameters: scales and the KL divergence between them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST_SHARE = 0.01
"""The least scale of a leaf, as a share of what the RMS of all parameters would give it."""


class Gaussian(NamedTuple):
    """Independent normal distributions of a model's parameters.

    Attributes:
      mean: a tree of parameters.
      log_scale: a tree of the same structure, logarithms of standard deviations; leaves of the same
        shapes, or scalars for a whole leaf.
    """

    mean: Any
    log_scale: Any


def leaf_scales(params: Any, factor: float) -> Any:
    """Return a standard deviation for each leaf: ``factor`` times the RMS of its parameters.

    A leaf near zero, as biases are, gets at least `SMALLEST_SHARE` of what the RMS of all
    parameters would give it: with a scale of zero the divergence would be infinite.

    Args:
      params: a prior's mean. The scales may depend on it, as it is known before the bound sample.
      factor: > 0.

    Returns:
      A tree of float32 scalars.
    """
    leaves = jax.tree.leaves(params)
    count = sum(a.size for a in leaves)
    squares = sum(jnp.sum(jnp.square(a.astype(jnp.float32))) for a in leaves)
    least = SMALLEST_SHARE * jnp.sqrt(squares / count)

    def scale(a: jax.Array) -> jax.Array:
        rms = jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32))))
        return factor * jnp.maximum(rms, least)

    return jax.tree.map(scale, params)


def laplace(mean: Any, fisher: Any, prior: Gaussian, n: jax.typing.ArrayLike) -> Gaussian:
    r"""Return the Gaussian around a model with the scales of a diagonal Laplace approximation.

    $$\sigma_j^2 = \frac{s_j^2}{1 + n s_j^2 F_j},$$

    the minimum over $\sigma$ of ``n`` times a quadratic loss plus the divergence from the prior
    (``docs/certificates.md``): wide where the loss is flat, and never wider than the prior.

    Args:
      mean: the model.
      fisher: a tree like it, $F \ge 0$, the diagonal of the Fisher information of one example,
        which stands for the second derivatives of the loss.
      prior: its scales are $s$.
      n: examples.

    >>> prior = Gaussian({"w": jnp.zeros(2)}, {"w": jnp.log(0.5)})
    >>> posterior = laplace({"w": jnp.ones(2)}, {"w": jnp.array([0.0, 0.12])}, prior, n=100)
    >>> print(jnp.exp(posterior.log_scale["w"]))
    [0.5  0.25]
    """

    def log_scale(f: jax.Array, log_s: jax.Array) -> jax.Array:
        return log_s - 0.5 * jnp.log1p(n * jnp.exp(2 * log_s) * f)

    return Gaussian(mean, jax.tree.map(log_scale, fisher, prior.log_scale))


def gaussian_kl(posterior: Gaussian | Any, prior: Any, scale: Any) -> float:
    r"""Return the KL divergence of two Gaussians with independent coordinates, in nats.

    $$\tfrac12 \sum_j \left[\frac{\sigma_j^2}{s_j^2} - 1 - \ln \frac{\sigma_j^2}{s_j^2}
    + \frac{(w_j - v_j)^2}{s_j^2}\right]$$

    with means $w$ and $v$ and scales $\sigma$ and $s$ of the posterior and the prior. Leaves that
    are not in the trees cost nothing: of adapters or a head, only these are summed.

    Args:
      posterior: a `Gaussian`; or a tree of parameters, its mean, with the prior's scales.
      prior: a tree of parameters, its mean.
      scale: a tree of its standard deviations > 0, leaves of the same shapes or scalars.

    Returns:
      A number, summed in float64 on the host.

    Raises:
      ValueError: for trees of different structures.

    >>> prior = {"w": np.zeros(3)}
    >>> gaussian_kl({"w": np.full(3, 0.2)}, prior, {"w": 0.1})
    6.0
    """
    if not isinstance(posterior, Gaussian):
        posterior = Gaussian(posterior, jax.tree.map(lambda s: np.log(np.asarray(s, float)), scale))
    trees = (*posterior, prior, scale)
    structures = [jax.tree.structure(tree) for tree in trees]
    if len(set(structures)) > 1:
        raise ValueError(
            f"gaussian_kl: mean, log_scale, prior and scale are trees {structures}; they must have "
            "one structure"
        )
    total = 0.0
    for leaves in zip(*map(jax.tree.leaves, trees), strict=True):
        mean, log_scale, centre, s = (np.asarray(leaf, np.float64) for leaf in leaves)
        log_ratio = 2 * (log_scale - np.log(s))
        terms = np.expm1(log_ratio) - log_ratio + ((mean - centre) / s) ** 2
        total += 0.5 * float(np.sum(np.broadcast_to(terms, mean.shape)))
    return total


def draw(gaussian: Gaussian, key: jax.Array) -> Any:
    """Return one tree of parameters from a Gaussian; consumes ``key``."""
    leaves, treedef = jax.tree.flatten(gaussian.mean)
    scales = jax.tree.leaves(gaussian.log_scale)
    keys = jax.random.split(key, len(leaves))
    drawn = map(draw_leaf, leaves, scales, keys)
    return jax.tree.unflatten(treedef, drawn)


def draw_leaf(mean: jax.Array, log_scale: jax.Array, key: jax.Array) -> jax.Array:
    """Return one draw of a leaf of a Gaussian; consumes ``key``."""
    return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, mean.dtype)
