"""How much a check does: for an accelerator in ten minutes, or for a CPU in seconds."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.benchmark.random_weights import CONFIGS, random_folder
from experiments.benchmark.workloads import ENCODER, LORA, WORKLOADS, Workload
from pflalign_jax import algorithms, models

PRECISIONS = {
    "float32": ("highest", None),
    "TF32": ("tensorfloat32", None),
    "bfloat16 products": ("bfloat16", None),
    "bfloat16": ("default", "bfloat16"),
}
"""Precision of products of float32, and the dtype that a model computes in; None: float32.
The first is what the others are held against."""


class Size(NamedTuple):
    """How much is done.

    Attributes:
      algorithms: that are compared with the CPU.
      rounds: timed rounds of each contender.
      workloads: by name; the first one is taken for chunks, precisions and seeds.
      contenders: algorithms that chunks and many clients are tried with.
      chunks: clients at a time that are tried.
      convolutions: what makes a workload of a kind of convolution, ``"patches"`` or ``"lax"``.
      many: a workload of many clients in one round.
      seeds: runs that are one program.
      peers: workloads that PyTorch trains, too, by the names of its networks.
      product: rows of the matrices whose product is the peak.
    """

    algorithms: tuple[str, ...]
    rounds: int
    workloads: Mapping[str, Workload]
    contenders: tuple[str, ...]
    chunks: tuple[int, ...]
    convolutions: Mapping[str, Callable[[str], Workload]]
    many: Workload
    seeds: int
    peers: Mapping[str, Workload]
    product: int


def _cnn(conv: str) -> Workload:
    return Workload(lambda: models.cnn(10, conv=conv), np.full(64, 200))


def _resnet(conv: str) -> Workload:
    return Workload(lambda: models.resnet(10, conv=conv), np.full(16, 100))


@functools.cache
def _tiny_encoder() -> models.Model:
    """Return an encoder with adapters, of the same code as MiniLM, with random weights."""
    tiny = {"hidden_size": 12, "intermediate_size": 16, "vocab_size": 20, "num_hidden_layers": 2}
    folder = random_folder(CONFIGS[ENCODER] | tiny)
    return models.pretrained_encoder(3, folder, rank=2, adapt_layers=1, keep_hidden=False)


FULL = Size(
    algorithms=algorithms.NAMES,
    rounds=5,
    workloads={
        "cnn": _cnn("lax"),
        "resnet": _resnet("lax"),
        "transformer": Workload(lambda: models.transformer(80), np.full(64, 50), tokens=80),
        "lora": LORA["lora-encoder"]._replace(sizes=np.full(16, 64)),
    },
    contenders=("fedavg", "pflalign"),
    chunks=(1, 4, 16, 64),
    convolutions={"cnn": _cnn, "resnet": _resnet},
    many=_cnn("lax")._replace(sizes=np.full(1000, 50)),
    seeds=4,
    peers={name: WORKLOADS[name] for name in ("cnn", "mlp")},
    product=8192,
)
"""For accelerators, whose convolutions are XLA's own."""

SMALL = Size(
    algorithms=("pflalign",),
    rounds=1,
    workloads={
        "mlp": Workload(lambda: models.mlp(10, (8,)), np.full(4, 20)),
        "lora": Workload(_tiny_encoder, np.full(2, 4), tokens=20, classes=3, batch=2),
    },
    contenders=("pflalign",),
    chunks=(2,),
    convolutions={
        "cnn": lambda conv: Workload(
            lambda: models.cnn(10, conv=conv, features=(2, 2), dense=4), np.full(2, 10)
        )
    },
    many=Workload(lambda: models.logistic(10), np.full(50, 4)),
    seeds=2,
    peers={"logistic": Workload(lambda: models.logistic(10), np.full(2, 20))},
    product=256,
)
"""For CPUs: the same code in seconds, so that an accelerator's time goes into measuring."""
