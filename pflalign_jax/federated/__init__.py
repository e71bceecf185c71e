"""What every algorithm runs on: local training, the round, evaluation."""

from pflalign_jax.federated.algorithm import Algorithm, ClientData, ClientOutput, Gathered, Mean
from pflalign_jax.federated.evaluation import ClientScores, summarise
from pflalign_jax.federated.federation import (
    Federation,
    FederationState,
    RoundResult,
    federate,
)
from pflalign_jax.federated.local import (
    LocalResult,
    LocalTraining,
    local_sgd,
    local_training,
    proximal,
)
from pflalign_jax.federated.paths import cut, joined, part_mask
from pflalign_jax.federated.statistics import class_features, label_counts
from pflalign_jax.federated.store import StoreError

__all__ = [
    "Algorithm",
    "ClientData",
    "ClientOutput",
    "ClientScores",
    "Federation",
    "FederationState",
    "Gathered",
    "LocalResult",
    "LocalTraining",
    "Mean",
    "RoundResult",
    "StoreError",
    "class_features",
    "cut",
    "federate",
    "joined",
    "label_counts",
    "local_sgd",
    "local_training",
    "part_mask",
    "proximal",
    "summarise",
]
