"""What every algorithm runs on: local training, the round, evaluation."""

from pflalign_jax.federated.algorithm import Algorithm, ClientData, ClientOutput, Mean
from pflalign_jax.federated.evaluation import ClientScores, summarise
from pflalign_jax.federated.federation import (
    Federation,
    FederationState,
    RoundResult,
    federate,
)
from pflalign_jax.federated.local import LocalResult, LocalTraining, local_sgd, local_training
from pflalign_jax.federated.store import StoreError

__all__ = [
    "Algorithm",
    "ClientData",
    "ClientOutput",
    "ClientScores",
    "Federation",
    "FederationState",
    "LocalResult",
    "LocalTraining",
    "Mean",
    "RoundResult",
    "StoreError",
    "federate",
    "local_sgd",
    "local_training",
    "summarise",
]
