"""What every algorithm runs on: local training, the round, evaluation."""

from pflalign_jax.federated import participation
from pflalign_jax.federated.algorithm import Algorithm, ClientData, ClientOutput, Gathered, Mean
from pflalign_jax.federated.evaluation import ClientScores, summarise
from pflalign_jax.federated.federation import federate
from pflalign_jax.federated.interface import Federation, FederationState, RoundResult
from pflalign_jax.federated.local import (
    LocalResult,
    LocalTraining,
    Loss,
    local_sgd,
    local_training,
    projected,
    proximal,
)
from pflalign_jax.federated.participation import Participation, Turnout
from pflalign_jax.federated.paths import cut, joined, part_mask
from pflalign_jax.federated.shapes import message_shapes
from pflalign_jax.federated.statistics import class_features, label_counts
from pflalign_jax.federated.store import StoreError
from pflalign_jax.federated.tunable import tunable

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
    "Loss",
    "Mean",
    "Participation",
    "RoundResult",
    "StoreError",
    "Turnout",
    "class_features",
    "cut",
    "federate",
    "joined",
    "label_counts",
    "local_sgd",
    "local_training",
    "message_shapes",
    "part_mask",
    "participation",
    "projected",
    "proximal",
    "summarise",
    "tunable",
]
