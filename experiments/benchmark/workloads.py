"""What `experiments.benchmark` trains: models on noise of the right shapes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.benchmark.random_weights import packaged_or_random
from pflalign_jax import models
from pflalign_jax.datasets import FederatedDataset, Owned

BATCH = 10

LENGTH = 64
"""Tokens of a sequence."""


class Workload(NamedTuple):
    """A named piece of work.

    Attributes:
      model: makes the model.
      sizes: ``[K]`` training examples per client.
      cohort: clients per round; None: all.
      tokens: vocabulary size of sequences of `LENGTH` tokens; 0: 28x28 images.
      classes: of sequences; 0: the next token at every position is the label.
      batch: examples per step.
    """

    model: Callable[[], models.Model]
    sizes: np.ndarray
    cohort: int | None = None
    tokens: int = 0
    classes: int = 0
    batch: int = BATCH


def _writers(count: int) -> np.ndarray:
    """Return sizes like those of NIST's writers, about 100 examples each."""
    return np.clip(np.random.default_rng(0).lognormal(4.6, 0.35, count), 20, 400).astype(int)


ENCODER, DECODER = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"


def _encoder(adapt_layers: int, keep_hidden: bool) -> models.Model:
    """Return MiniLM with adapters of rank 8 on queries and values, and a head of 150 classes."""
    path = packaged_or_random(ENCODER)
    return models.pretrained_encoder(150, path, adapt_layers=adapt_layers, keep_hidden=keep_hidden)


def _decoder(adapt_layers: int) -> models.Model:
    """Return SmolLM2 with adapters of rank 8 on queries and values."""
    return models.pretrained_decoder(49152, packaged_or_random(DECODER), adapt_layers=adapt_layers)


_TEXTS = Workload(
    functools.partial(_encoder, 6, False), np.full(4, 16), tokens=30522, classes=150, batch=8
)

LORA = {
    "lora-encoder": _TEXTS,
    "lora-encoder-top": _TEXTS._replace(model=functools.partial(_encoder, 2, True)),
    "lora-decoder": Workload(functools.partial(_decoder, 4), np.full(2, 8), tokens=49152, batch=8),
}
"""Low-rank adapters of pretrained models, at 8 x 64 tokens: of all six layers of the encoder; of
its top two, on hidden states that are kept; of the decoder's top four. ``--workload=lora``."""

WORKLOADS = {
    "cnn": Workload(lambda: models.cnn(10), np.full(20, 200)),
    "logistic": Workload(lambda: models.logistic(10), np.full(100, 200)),
    "mlp": Workload(lambda: models.mlp(10, (200,)), np.full(100, 200)),
    "mlp2": Workload(lambda: models.mlp(10, (100, 100)), np.full(100, 200)),
    "mlp500": Workload(lambda: models.mlp(10, (200,)), np.full(500, 100)),
    "writers": Workload(lambda: models.cnn(10), _writers(800), cohort=50),
    "transformer": Workload(lambda: models.transformer(80), np.full(20, 50), tokens=80),
    **LORA,
}


def noise(workload: Workload, seed: int = 0) -> FederatedDataset:
    """Return noise with the workload's shapes and sizes."""
    rng = np.random.default_rng(seed)
    sizes = workload.sizes
    total, count = int(sizes.sum()), len(sizes)
    # The next token is the label, as with texts.
    if workload.tokens:
        text = rng.integers(0, workload.tokens, (total, LENGTH + 1), dtype=np.int32)
        x, y, centre = text[:, :-1], text[:, 1:], 0.0
        if workload.classes:
            y = rng.integers(0, workload.classes, total, dtype=np.int32)
    else:
        x = rng.integers(0, 256, (total, 28, 28, 1), dtype=np.uint8)
        y, centre = rng.integers(0, 10, total, dtype=np.int32), 127.5
    empty = Owned(np.zeros(0, np.int64), np.zeros(count + 1, np.int64))
    train = Owned(np.arange(total), np.concatenate([[0], np.cumsum(sizes)]))
    return FederatedDataset(
        "noise",
        x,
        y,
        workload.classes or workload.tokens or 10,
        {"train": train, "validation": empty, "test": empty},
        np.arange(count).astype(str),
        np.arange(count, dtype=np.int32),
        np.asarray(centre, np.float32),
        np.asarray(centre or 1.0, np.float32),
    )
