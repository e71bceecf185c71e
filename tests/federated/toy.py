"""Small federations for tests, made by hand."""

import contextlib
import logging

import jax
import numpy as np

from pflalign_jax import algorithms, models
from pflalign_jax.datasets.base import FederatedDataset, Owned

MODEL = models.mlp(3, hidden=(8,))
LOSS = models.cross_entropy(MODEL)

ALGORITHMS = {
    "fedavg": lambda **work: algorithms.fedavg(MODEL, 0.3, **work),
    "local": lambda **work: algorithms.local(MODEL, 0.3, **work),
    "pflalign": lambda **work: algorithms.pflalign(MODEL, 3.0, **work),
    "pflalign-no-preconditioner": lambda **work: algorithms.pflalign(
        MODEL, 0.3, precondition=False, **work
    ),
    "pflalign-sign": lambda **work: algorithms.pflalign(MODEL, 3.0, correction="sign", **work),
    "pflalign-no-realignment": lambda **work: algorithms.pflalign(
        MODEL, 3.0, realignment=False, **work
    ),
}
FEW = ("fedavg", "local", "pflalign")
"""For what takes long and is the same in pFLAlign's variants."""


def dataset(sizes=(23, 4, 11, 1, 17, 9, 30), seed=0):
    """Return K ragged clients with 3 classes of points; each client's labels are skewed."""
    rng = np.random.default_rng(seed)
    centres = np.array([[2.0, 0, 0, 1], [0, 2.0, 0, -1], [0, 0, 2.0, 0]])
    splits = {"train": [], "validation": [], "test": []}
    labels, start = [], 0
    for client, size in enumerate(sizes):
        for split, count in (("train", size), ("validation", 3), ("test", 4)):
            labels.append(np.where(rng.random(count) < 0.7, client % 3, rng.integers(0, 3, count)))
            splits[split].append(np.arange(start, start + count))
            start += count
    y = np.concatenate(labels).astype(np.int32)
    x = (centres[y] + rng.normal(size=(len(y), 4))).astype(np.float32)

    def owned(parts):
        return Owned(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    num_clients = len(sizes)
    return FederatedDataset(
        "toy",
        x,
        y,
        3,
        {split: owned(parts) for split, parts in splits.items()},
        np.array([f"c{k}" for k in range(num_clients)]),
        np.arange(num_clients, dtype=np.int32),
        np.float32(0.5),
        np.float32(2.0),
    )


def host(tree):
    """Return a copy on the host, which donation cannot invalidate."""
    return jax.tree.map(lambda a: np.array(a) if not _is_key(a) else a, tree)


def _is_key(a):
    return isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)


def mesh(count):
    """Return a mesh of the first ``count`` devices."""
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("clients",))


@contextlib.contextmanager
def compilations():
    """Yield a list that fills with the names of what XLA compiles."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Finished XLA compilation"):
                names.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
