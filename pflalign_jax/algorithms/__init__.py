"""Algorithms, one file each; a factory returns an `Algorithm`."""

from pflalign_jax.algorithms.apfl import apfl
from pflalign_jax.algorithms.apple import apple
from pflalign_jax.algorithms.averaging import averaged, averaging
from pflalign_jax.algorithms.cfl import cfl
from pflalign_jax.algorithms.ditto import ditto
from pflalign_jax.algorithms.fedadam import fedadam
from pflalign_jax.algorithms.fedala import fedala
from pflalign_jax.algorithms.fedamp import fedamp
from pflalign_jax.algorithms.fedas import fedas
from pflalign_jax.algorithms.fedavg import fedavg
from pflalign_jax.algorithms.fedavgm import fedavgm
from pflalign_jax.algorithms.fedbabu import fedbabu
from pflalign_jax.algorithms.fedbn import fedbn
from pflalign_jax.algorithms.fedcac import fedcac
from pflalign_jax.algorithms.fedcp import fedcp
from pflalign_jax.algorithms.feddbe import feddbe
from pflalign_jax.algorithms.feddyn import feddyn
from pflalign_jax.algorithms.fedem import fedem
from pflalign_jax.algorithms.fedfomo import fedfomo
from pflalign_jax.algorithms.fedgh import fedgh
from pflalign_jax.algorithms.fedntd import fedntd
from pflalign_jax.algorithms.fedopt import fedopt
from pflalign_jax.algorithms.fedpac import fedpac
from pflalign_jax.algorithms.fedper import fedper
from pflalign_jax.algorithms.fedphp import fedphp
from pflalign_jax.algorithms.fedproto import fedproto
from pflalign_jax.algorithms.fedprox import fedprox
from pflalign_jax.algorithms.fedrep import fedrep
from pflalign_jax.algorithms.fedrod import fedrod
from pflalign_jax.algorithms.fedsa_lora import fedsa_lora
from pflalign_jax.algorithms.fedyogi import fedyogi
from pflalign_jax.algorithms.fesem import fesem
from pflalign_jax.algorithms.ffa_lora import ffa_lora
from pflalign_jax.algorithms.flora import flora
from pflalign_jax.algorithms.fml import fml
from pflalign_jax.algorithms.gpfl import gpfl
from pflalign_jax.algorithms.head_only import head_only
from pflalign_jax.algorithms.ifca import ifca
from pflalign_jax.algorithms.knnper import knnper
from pflalign_jax.algorithms.lgfedavg import lgfedavg
from pflalign_jax.algorithms.local import local
from pflalign_jax.algorithms.moon import moon
from pflalign_jax.algorithms.partly_fixed import partly_fixed
from pflalign_jax.algorithms.partly_local import partly_local, shared_in_part
from pflalign_jax.algorithms.perfedavg import perfedavg
from pflalign_jax.algorithms.pfedbayes import pfedbayes
from pflalign_jax.algorithms.pfedhn import pfedhn
from pflalign_jax.algorithms.pfedme import pfedme
from pflalign_jax.algorithms.pfedsim import pfedsim
from pflalign_jax.algorithms.pflalign import pflalign
from pflalign_jax.algorithms.rolora import rolora
from pflalign_jax.algorithms.scaffold import scaffold
from pflalign_jax.algorithms.superfed import superfed
from pflalign_jax.algorithms.two_models import two_models

__all__ = [
    "apfl",
    "apple",
    "cfl",
    "ditto",
    "fedadam",
    "fedala",
    "fedamp",
    "fedas",
    "fedavg",
    "fedavgm",
    "fedbabu",
    "fedbn",
    "fedcac",
    "fedcp",
    "feddbe",
    "feddyn",
    "fedem",
    "fedfomo",
    "fedgh",
    "fedntd",
    "fedpac",
    "fedper",
    "fedphp",
    "fedproto",
    "fedprox",
    "fedrep",
    "fedrod",
    "fedsa_lora",
    "fedyogi",
    "fesem",
    "ffa_lora",
    "flora",
    "fml",
    "gpfl",
    "head_only",
    "ifca",
    "knnper",
    "lgfedavg",
    "local",
    "moon",
    "perfedavg",
    "pfedbayes",
    "pfedhn",
    "pfedme",
    "pfedsim",
    "pflalign",
    "rolora",
    "scaffold",
    "superfed",
]

NAMES = tuple(__all__)
"""What a config's ``algorithm.name`` can be."""

# What takes an optimiser, a mask or a client's update, from which algorithms are made.
__all__ += ["averaged", "averaging", "fedopt", "partly_fixed", "partly_local", "shared_in_part"]
__all__ += ["two_models"]
