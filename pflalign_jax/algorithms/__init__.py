"""Algorithms, one file each; a factory returns an `Algorithm`."""

from pflalign_jax.algorithms.apfl import apfl
from pflalign_jax.algorithms.averaging import averaged, averaging
from pflalign_jax.algorithms.ditto import ditto
from pflalign_jax.algorithms.fedadam import fedadam
from pflalign_jax.algorithms.fedala import fedala
from pflalign_jax.algorithms.fedamp import fedamp
from pflalign_jax.algorithms.fedavg import fedavg
from pflalign_jax.algorithms.fedavgm import fedavgm
from pflalign_jax.algorithms.fedbabu import fedbabu
from pflalign_jax.algorithms.fedbn import fedbn
from pflalign_jax.algorithms.fedcp import fedcp
from pflalign_jax.algorithms.feddbe import feddbe
from pflalign_jax.algorithms.feddyn import feddyn
from pflalign_jax.algorithms.fedopt import fedopt
from pflalign_jax.algorithms.fedpac import fedpac
from pflalign_jax.algorithms.fedper import fedper
from pflalign_jax.algorithms.fedproto import fedproto
from pflalign_jax.algorithms.fedprox import fedprox
from pflalign_jax.algorithms.fedrep import fedrep
from pflalign_jax.algorithms.fedrod import fedrod
from pflalign_jax.algorithms.fedsa_lora import fedsa_lora
from pflalign_jax.algorithms.fedyogi import fedyogi
from pflalign_jax.algorithms.ffa_lora import ffa_lora
from pflalign_jax.algorithms.flora import flora
from pflalign_jax.algorithms.gpfl import gpfl
from pflalign_jax.algorithms.head_only import head_only
from pflalign_jax.algorithms.ifca import ifca
from pflalign_jax.algorithms.lgfedavg import lgfedavg
from pflalign_jax.algorithms.local import local
from pflalign_jax.algorithms.partly_fixed import partly_fixed
from pflalign_jax.algorithms.partly_local import partly_local, shared_in_part
from pflalign_jax.algorithms.perfedavg import perfedavg
from pflalign_jax.algorithms.pfedme import pfedme
from pflalign_jax.algorithms.pflalign import pflalign
from pflalign_jax.algorithms.rolora import rolora
from pflalign_jax.algorithms.scaffold import scaffold

__all__ = [
    "apfl",
    "ditto",
    "fedadam",
    "fedala",
    "fedamp",
    "fedavg",
    "fedavgm",
    "fedbabu",
    "fedbn",
    "fedcp",
    "feddbe",
    "feddyn",
    "fedpac",
    "fedper",
    "fedproto",
    "fedprox",
    "fedrep",
    "fedrod",
    "fedsa_lora",
    "fedyogi",
    "ffa_lora",
    "flora",
    "gpfl",
    "head_only",
    "ifca",
    "lgfedavg",
    "local",
    "perfedavg",
    "pfedme",
    "pflalign",
    "rolora",
    "scaffold",
]

NAMES = tuple(__all__)
"""What a config's ``algorithm.name`` can be."""

# What takes an optimiser, a mask or a client's update, from which algorithms are made.
__all__ += ["averaged", "averaging", "fedopt", "partly_fixed", "partly_local", "shared_in_part"]
