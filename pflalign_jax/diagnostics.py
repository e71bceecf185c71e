"""Measurements of alignment in every round: P, γ, directions and gradient noise."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.align import AlignState, removed
from pflalign_jax.federated import Mean

SAMPLE_SIZE = 64
"""Coordinates per client on which P, γ and noise are measured, evenly spaced in each leaf.

Few, so that diagnostics add little to the round of a small model."""

P_EDGES = np.concatenate([[0.0], np.geomspace(1e-4, 1, 64)])
"""Edges of the histogram of P; its quantiles are exact to a sixth of their value above 1e-4."""

GAMMA_EDGES = np.linspace(0, 1, 21)
"""Edges of the histogram of γ."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of P that are reported."""

SCALARS = (
    "P/mean",
    "gradient_noise",
    "gradient_noise/preconditioned",
    "direction/norm",
    "direction/cosine",
)
"""What `alignment_metrics` measures besides histograms, in the order of its vector."""

_HISTOGRAM_STARTS = (len(SCALARS), len(SCALARS) + len(P_EDGES) - 1)
"""Where the histograms of P and of γ begin in the vector of `alignment_metrics`."""


def alignment_metrics(
    state: AlignState,
    before: Any,
    after: Any,
    correction: str | float = "probability",
    eps: float = 1e-12,
) -> dict[str, Mean]:
    """Return measurements of a client's round, for `ClientOutput.metrics`.

    Gradient noise is the method's own estimate of the variance, ``max(v - m², 0)``, averaged over
    coordinates: without preconditioning, and with it, ``P² max(v - m², 0)``. P, γ and noise are
    measured on a sample of `SAMPLE_SIZE` coordinates of each client, directions on all coordinates.

    Args:
      state: of `align_transform` after the client's last local step, with ``m``.
      before, after: the client's direction before and after the round; ``before`` may be None.
      correction, eps: as given to `align_transform`; γ is that of the last step.

    Returns:
      ``{"alignment": Mean}`` of one vector, which `diagnostics_summary` reads.
    """
    m, v, u = (_sample(tree).astype(jnp.float32) for tree in (state.m, state.v, state.u))
    p, noise = jnp.minimum(u / (v + eps), 1), jnp.maximum(v - m * m, 0)
    norm = optax.tree.norm(after)
    # Weights of 0 say "not measured": a client's first round has no direction to compare with.
    cosine, has_cosine = jnp.zeros(()), jnp.zeros(())
    gamma, has_gamma = jnp.zeros_like(p), jnp.zeros_like(p)
    if before is not None:
        norms = optax.tree.norm(before) * norm
        has_cosine = (norms > 0).astype(jnp.float32)
        cosine = optax.tree.vdot(before, after) / jnp.where(norms > 0, norms, 1)
        # γ is not formed in a step, γ Δ is; where Δ is 0, γ has no meaning.
        delta = _sample(before)
        gamma = removed(correction, m, v, eps, delta) / jnp.where(delta != 0, delta, 1)
        has_gamma = (delta != 0).astype(jnp.float32)
    parts = [
        Mean(jnp.stack([p.mean(), noise.mean(), jnp.mean(p * p * noise), norm]), jnp.ones(4)),
        Mean((cosine * has_cosine)[None], has_cosine[None]),
        _histogram(p, P_EDGES, jnp.ones_like(p)),
        _histogram(gamma, GAMMA_EDGES, has_gamma),
    ]
    # One vector: in small models, fetching ten arrays in every round takes longer than their sums.
    total, weight = (jnp.concatenate(each, dtype=jnp.float32) for each in zip(*parts, strict=True))
    return {"alignment": Mean(total, weight)}


def diagnostics_summary(metrics: Mapping[str, Any]) -> dict[str, float | list[float]]:
    """Return a round's diagnostics as plain numbers, with quantiles in place of P's histogram.

    Args:
      metrics: means over the cohort, `RoundResult.metrics`.

    Returns:
      Every metric by its name. In place of ``alignment``: `SCALARS`, ``P/q05`` .. ``P/q95`` over
      the sampled coordinates of all clients, and ``gamma/histogram``, the share of coordinates in
      each of 20 equal bins of [0, 1]. What was not measured (directions before the second round)
      is left out.
    """
    summary: dict[str, float | list[float]] = {}
    for name, value in ((name, np.asarray(value)) for name, value in metrics.items()):
        if name == "alignment":
            scalars, p_shares, gamma_shares = np.split(value, _HISTOGRAM_STARTS)
            summary.update(zip(SCALARS, scalars.tolist(), strict=True))
            summary.update(_p_quantiles(p_shares))
            summary["gamma/histogram"] = gamma_shares.tolist()
        else:
            summary[name] = value.tolist()
    # A mean of weight 0 arrives as NaN.
    return {name: value for name, value in summary.items() if _finite(value)}


def _p_quantiles(shares: np.ndarray) -> dict[str, float]:
    """Return `QUANTILES` of a histogram over `P_EDGES`, linear between edges."""
    below = np.concatenate([[0.0], np.cumsum(shares)])  # share of values below each edge
    # Times the last sum, which is 1 only up to rounding.
    values = np.interp(np.array(QUANTILES) * below[-1], below, P_EDGES).tolist()
    return {f"P/q{100 * q:02.0f}": value for q, value in zip(QUANTILES, values, strict=True)}


def _finite(value: float | list[float]) -> bool:
    return all(map(math.isfinite, value)) if isinstance(value, list) else math.isfinite(value)


def _sample(tree: Any) -> jax.Array:
    """Return about `SAMPLE_SIZE` coordinates of a tree, at the same stride in all leaves."""
    leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
    stride = -(-sum(leaf.size for leaf in leaves) // SAMPLE_SIZE)  # rounded up
    return jnp.concatenate([leaf[::stride] for leaf in leaves])


def _histogram(values: jax.Array, edges: np.ndarray, weights: jax.Array) -> Mean:
    """Return the share of values in each bin, the last edge included, as a `Mean`.

    It compares with all edges at once; `jnp.histogram`, which searches and scatters, takes 1.5
    times as long on a CPU.
    """
    above_edge = (values[None] >= jnp.asarray(edges[1:-1], values.dtype)[:, None]) * weights[None]
    # Everything is above the first edge and nothing above the last, so each value is in one bin.
    above = jnp.concatenate([weights.sum()[None], above_edge.sum(1), jnp.zeros(1)])
    return Mean(above[:-1] - above[1:], jnp.full(len(edges) - 1, weights.sum()))
