"""What alignment does, in numbers: P, γ, directions and gradient noise, round by round."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.align import AlignState, removed
from pflalign_jax.federated import Mean

SAMPLE = 128
"""Coordinates per client that P, γ and noise are measured on, evenly spaced in each leaf."""

P_EDGES = np.concatenate([[0.0], np.geomspace(1e-4, 1, 64)])
"""Edges of the histogram of P; its quantiles are exact to a sixth of their value above 1e-4."""

GAMMA_EDGES = np.linspace(0, 1, 21)
"""Edges of the histogram of γ."""


def alignment_metrics(
    state: AlignState,
    before: Any,
    after: Any,
    correction: str | float = "probability",
    eps: float = 1e-12,
) -> dict[str, Mean]:
    """Return what to look at after a client's round, for `ClientOutput.metrics`.

    Gradient noise is the method's own estimate of the variance, ``max(v - m², 0)``, the mean over
    coordinates: as it is, and after preconditioning, ``P² max(v - m², 0)``. P, γ and noise are
    measured on a sample of `SAMPLE` coordinates of each client, directions on all.

    Args:
      state: of `align_transform` after the client's last local step, with ``m``.
      before, after: the client's direction before and after the round; ``before`` may be None.
      correction, eps: as given to `align_transform`; γ is that of the last step.

    Returns:
      Name to `Mean`, to be read by `describe`; histograms have their bins in ``total``.
    """
    m, v, u = (_sample(tree).astype(jnp.float32) for tree in (state.m, state.v, state.u))
    p, noise = jnp.minimum(u / (v + eps), 1), jnp.maximum(v - m * m, 0)
    metrics = {
        "P/mean": Mean(p.mean(), 1.0),
        "P/histogram": _histogram(p, P_EDGES, jnp.ones_like(p)),
        "gradient_noise": Mean(noise.mean(), 1.0),
        "gradient_noise/preconditioned": Mean(jnp.mean(p * p * noise), 1.0),
        "direction/norm": Mean(optax.tree.norm(after), 1.0),
    }
    if before is not None:
        both = optax.tree.norm(before) * metrics["direction/norm"].total
        known = (both > 0).astype(jnp.float32)
        cosine = optax.tree.vdot(before, after) / jnp.where(both > 0, both, 1)
        metrics["direction/cosine"] = Mean(cosine * known, known)
        delta = _sample(before)
        gamma = removed(correction, m, v, eps, delta) / jnp.where(delta != 0, delta, 1)
        moved = (delta != 0).astype(jnp.float32)
        metrics["gamma/histogram"] = _histogram(gamma, GAMMA_EDGES, moved)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), metrics)


def describe(metrics: Mapping[str, jax.Array]) -> dict[str, float | list[float]]:
    """Return a round's diagnostics as plain numbers, histograms of P as quantiles.

    Args:
      metrics: means over the cohort, `RoundResult.metrics`.

    Returns:
      Those of the metrics that are numbers; ``P/q05`` .. ``P/q95`` over all clients' sampled
      coordinates; ``gamma/histogram``, the share of coordinates in each of 20 equal bins of [0, 1].
      What is not known (directions before the second round) is left out.
    """
    found: dict[str, float | list[float]] = {}
    for name, value in jax.device_get(dict(metrics)).items():
        if not np.all(np.isfinite(value)):
            continue
        if name == "P/histogram":
            below = np.concatenate([[0.0], np.cumsum(value)])
            for q in (5, 25, 50, 75, 95):
                found[f"P/q{q:02d}"] = float(np.interp(q / 100 * below[-1], below, P_EDGES))
        else:
            found[name] = float(value) if np.ndim(value) == 0 else [float(x) for x in value]
    return found


def _sample(tree):
    """Return `SAMPLE` or so coordinates of a tree."""
    leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
    stride = -(-sum(leaf.size for leaf in leaves) // SAMPLE)
    return jnp.concatenate([leaf[::stride] for leaf in leaves])


def _histogram(values, edges, weights):
    """Return the share of values between edges, the last one included, as a `Mean`."""
    reached = (values[None, :] >= jnp.asarray(edges[1:-1], values.dtype)[:, None]) * weights[None]
    above = jnp.concatenate([weights.sum()[None], reached.sum(1), jnp.zeros(1)])
    return Mean(above[:-1] - above[1:], weights.sum())
