"""Synthetic(α, β) of FedProx: logistic models and features that differ between clients."""

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples

DIMENSION, CLASSES = 60, 10


def make_synthetic(
    model_alpha: float = 1.0, beta: float = 1.0, devices: int = 30, iid: bool = False, seed: int = 0
) -> Examples:
    """Return FedProx's synthetic(α, β).

    Client k has ``50 + floor(lognormal(4, 2))`` examples, at most 100,050. Its model has weights
    and biases from N(u_k, 1) with ``u_k ~ N(0, α)``; its features come from N(v_k, Σ) with
    ``v_k ~ N(B_k, 1)``, ``B_k ~ N(0, β)`` and ``Σ = diag(j^-1.2)``, j = 1..60;
    ``y = argmax(W x + b)`` over 10 classes.
    α and β are variances, as in the paper; its authors' code takes them for standard deviations.

    Args:
      model_alpha: ``α`` >= 0, how much the clients' true models differ.
      beta: ``β`` >= 0, how much the clients' features differ.
      devices: number of natural owners.
      iid: True for one model N(0, 1) and features N(0, Σ) for all clients.
      seed: client k draws from ``default_rng([seed, k, 1])``, independent of the other clients.

    Raises:
      DatasetError: naming the argument and its value.

    References:
      Li et al., "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127, section 5.1.
    """
    for name, value in (("model_alpha", model_alpha), ("beta", beta)):
        if not value >= 0:
            raise DatasetError(f"synthetic: {name}={value} is not allowed; it must be >= 0")
    if devices < 1:
        raise DatasetError(f"synthetic: devices={devices} is not allowed; it must be >= 1")
    spread = np.arange(1, DIMENSION + 1) ** -0.6  # standard deviations: roots of the variances
    common = np.random.default_rng([seed])
    shared = common.standard_normal((DIMENSION, CLASSES)), common.standard_normal(CLASSES)
    xs, ys = [], []
    for k in range(devices):
        rng = np.random.default_rng([seed, k, 1])
        # The log-normal has a heavy tail: without a bound one client could fill the memory.
        size = 50 + int(min(rng.lognormal(4, 2), 1e5))
        u, b = rng.normal(0, np.sqrt(model_alpha)), rng.normal(0, np.sqrt(beta))
        weights, bias = rng.normal(u, 1, (DIMENSION, CLASSES)), rng.normal(u, 1, CLASSES)
        centre = rng.normal(b, 1, DIMENSION)
        # Drawn and then replaced, so that sizes are the same with and without iid.
        if iid:
            (weights, bias), centre = shared, np.zeros(DIMENSION)
        x = centre + spread * rng.standard_normal((size, DIMENSION))
        xs.append(x.astype(np.float32))
        ys.append(np.argmax(x @ weights + bias, axis=1).astype(np.int32))
    owner = np.repeat(np.arange(devices), [len(y) for y in ys])
    return Examples("synthetic", np.concatenate(xs), np.concatenate(ys), CLASSES, owner)
