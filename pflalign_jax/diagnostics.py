"""What alignment does, in numbers: P, γ, directions and gradient noise, round by round."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.align import AlignState, removed
from pflalign_jax.federated import Mean

SAMPLE = 64
"""Coordinates per client that P, γ and noise are measured on, evenly spaced in each leaf."""

P_EDGES = np.concatenate([[0.0], np.geomspace(1e-4, 1, 64)])
"""Edges of the histogram of P; its quantiles are exact to a sixth of their value above 1e-4."""

GAMMA_EDGES = np.linspace(0, 1, 21)
"""Edges of the histogram of γ."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of P."""

NUMBERS = (
    "P/mean",
    "gradient_noise",
    "gradient_noise/preconditioned",
    "direction/norm",
    "direction/cosine",
)
"""What `alignment_metrics` measures beside histograms."""

_ENDS = (len(NUMBERS), len(NUMBERS) + len(P_EDGES) - 1)
"""Where P's and γ's histograms begin in its vector."""


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
      ``{"alignment": Mean}`` of one vector, to be read by `describe`: in small models it takes
      longer to fetch ten arrays in every round than to compute them.
    """
    m, v, u = (_sample(tree).astype(jnp.float32) for tree in (state.m, state.v, state.u))
    p, noise = jnp.minimum(u / (v + eps), 1), jnp.maximum(v - m * m, 0)
    norm, cosine, known = optax.tree.norm(after), jnp.zeros(()), jnp.zeros(())
    gamma, moved = jnp.zeros_like(p), jnp.zeros_like(p)
    if before is not None:
        both = optax.tree.norm(before) * norm
        known = (both > 0).astype(jnp.float32)
        cosine = optax.tree.vdot(before, after) / jnp.where(both > 0, both, 1)
        delta = _sample(before)
        gamma = removed(correction, m, v, eps, delta) / jnp.where(delta != 0, delta, 1)
        moved = (delta != 0).astype(jnp.float32)
    parts = [
        Mean(jnp.stack([p.mean(), noise.mean(), jnp.mean(p * p * noise), norm]), jnp.ones(4)),
        Mean((cosine * known)[None], known[None]),
        _histogram(p, P_EDGES, jnp.ones_like(p)),
        _histogram(gamma, GAMMA_EDGES, moved),
    ]
    total, weight = (jnp.concatenate(each, dtype=jnp.float32) for each in zip(*parts, strict=True))
    return {"alignment": Mean(total, weight)}


def describe(metrics: Mapping[str, Any]) -> dict[str, float | list[float]]:
    """Return a round's diagnostics as plain numbers, histograms of P as quantiles.

    Args:
      metrics: means over the cohort, `RoundResult.metrics`.

    Returns:
      Those of the metrics that are numbers; of ``alignment``, `NUMBERS`, ``P/q05`` .. ``P/q95``
      over all clients' sampled coordinates, and ``gamma/histogram``, the share of coordinates in
      each of 20 equal bins of [0, 1]. What is not known (directions before the second round) is
      left out.
    """
    found: dict[str, float | list[float]] = {}
    for name, value in ((name, np.asarray(value)) for name, value in metrics.items()):
        if name == "alignment":
            known, p, gamma = np.split(value, _ENDS)
            found.update(zip(NUMBERS, known.tolist(), strict=True))
            below = np.concatenate([[0.0], np.cumsum(p)])
            at = np.interp(np.array(QUANTILES) * below[-1], below, P_EDGES).tolist()
            found.update(zip((f"P/q{100 * q:02.0f}" for q in QUANTILES), at, strict=True))
            found["gamma/histogram"] = gamma.tolist()
        else:
            found[name] = value.tolist()
    return {name: value for name, value in found.items() if _finite(value)}


def _finite(value):
    return all(map(math.isfinite, value)) if isinstance(value, list) else math.isfinite(value)


def _sample(tree):
    """Return `SAMPLE` or so coordinates of a tree."""
    leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
    stride = -(-sum(leaf.size for leaf in leaves) // SAMPLE)
    return jnp.concatenate([leaf[::stride] for leaf in leaves])


def _histogram(values, edges, weights):
    """Return the share of values between edges, the last one included, as a `Mean`."""
    reached = (values[None, :] >= jnp.asarray(edges[1:-1], values.dtype)[:, None]) * weights[None]
    above = jnp.concatenate([weights.sum()[None], reached.sum(1), jnp.zeros(1)])
    return Mean(above[:-1] - above[1:], jnp.full(len(edges) - 1, weights.sum()))
