"""Algorithms, one file each; a factory returns an `Algorithm`."""

from pflalign_jax.algorithms.fedavg import fedavg
from pflalign_jax.algorithms.local import local
from pflalign_jax.algorithms.pflalign import pflalign

__all__ = ["fedavg", "local", "pflalign"]
