"""What `experiments.benchmark` trains: models on noise of the right shapes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pflalign_jax import models
from pflalign_jax.datasets import FederatedDataset, Owned

BATCH = 10


class Workload(NamedTuple):
    """A named piece of work.

    Attributes:
      model: makes the model.
      sizes: ``[K]`` training examples per client.
      cohort: clients per round; None: all.
      tokens: vocabulary size of sequences of 64 tokens; 0: 28x28 images.
    """

    model: Callable[[], models.Model]
    sizes: np.ndarray
    cohort: int | None = None
    tokens: int = 0


def _writers(count: int) -> np.ndarray:
    """Return sizes like those of NIST's writers, about 100 examples each."""
    return np.clip(np.random.default_rng(0).lognormal(4.6, 0.35, count), 20, 400).astype(int)


WORKLOADS = {
    "cnn": Workload(lambda: models.cnn(10), np.full(20, 200)),
    "logistic": Workload(lambda: models.logistic(10), np.full(100, 200)),
    "mlp": Workload(lambda: models.mlp(10, (200,)), np.full(100, 200)),
    "mlp2": Workload(lambda: models.mlp(10, (100, 100)), np.full(100, 200)),
    "mlp500": Workload(lambda: models.mlp(10, (200,)), np.full(500, 100)),
    "writers": Workload(lambda: models.cnn(10), _writers(800), cohort=50),
    "transformer": Workload(lambda: models.transformer(80), np.full(20, 50), tokens=80),
}


def noise(workload: Workload, seed: int = 0) -> FederatedDataset:
    """Return noise with the workload's shapes and sizes."""
    rng = np.random.default_rng(seed)
    sizes = workload.sizes
    total, count = int(sizes.sum()), len(sizes)
    # The next token is the label, as with texts.
    if workload.tokens:
        text = rng.integers(0, workload.tokens, (total, 65), dtype=np.int32)
        x, y, centre = text[:, :-1], text[:, 1:], 0.0
    else:
        x = rng.integers(0, 256, (total, 28, 28, 1), dtype=np.uint8)
        y, centre = rng.integers(0, 10, total, dtype=np.int32), 127.5
    empty = Owned(np.zeros(0, np.int64), np.zeros(count + 1, np.int64))
    train = Owned(np.arange(total), np.concatenate([[0], np.cumsum(sizes)]))
    return FederatedDataset(
        "noise",
        x,
        y,
        workload.tokens or 10,
        {"train": train, "validation": empty, "test": empty},
        np.arange(count).astype(str),
        np.arange(count, dtype=np.int32),
        np.asarray(centre, np.float32),
        np.asarray(centre or 1.0, np.float32),
    )
