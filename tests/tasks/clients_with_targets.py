"""Small federations with every kind of task."""

import numpy as np

from pflalign_jax.datasets.base import FederatedDataset, Owned

SIZES = (23, 4, 11, 1, 17, 9, 30)
"""Training examples of each client; each has half as many for the test, at least one."""


def dataset(targets, num_classes=0, seed=0):
    """Return clients with targets ``targets(x, client, rng)`` of features ``x [n, 4]``."""
    rng = np.random.default_rng(seed)
    xs, ys, start = [], [], 0
    parts = {"train": [], "validation": [], "test": []}
    for client, size in enumerate(SIZES):
        for split, count in (("train", size), ("validation", 0), ("test", max(size // 2, 1))):
            x = rng.normal(size=(count, 4)).astype(np.float32)
            xs.append(x), ys.append(targets(x, client, rng))
            parts[split].append(np.arange(start, start + count))
            start += count
    return FederatedDataset(
        "toy",
        np.concatenate(xs),
        np.concatenate(ys),
        num_classes,
        {split: Owned.from_parts(owned) for split, owned in parts.items()},
        np.array([f"c{k}" for k in range(len(SIZES))]),
        np.arange(len(SIZES), dtype=np.int32),
        np.float32(0),
        np.float32(1),
    )


def numbers(x, client, rng):
    """One number: 100 times the first feature around a mean of the client's own."""
    return (300 + 20 * client + 100 * x[:, 0]).astype(np.float32)


def two_numbers(x, client, rng):
    """Two numbers of very different scale."""
    return np.stack([numbers(x, client, rng), 0.01 * x[:, 1]], axis=1).astype(np.float32)


def rare_events(x, client, rng):
    """One label of 0 or 1, mostly 0; client 1 has only 0."""
    y = (x[:, 0] + 0.5 * rng.normal(size=len(x)) > 0.7).astype(np.int32)
    return np.zeros_like(y) if client == 1 else y


def three_labels(x, client, rng):
    """Three labels that are each 0 or 1."""
    return (x[:, :3] > np.array([[0.0, 0.5, -0.5]])).astype(np.int32)


def three_classes(x, client, rng):
    """One of three classes."""
    return np.argmax(x[:, :3], axis=1).astype(np.int32)
