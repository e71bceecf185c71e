"""What every algorithm runs on: local training, the round, evaluation."""

from pflalign_jax.federated import participation
from pflalign_jax.federated.algorithm import (
    GATHERED,
    MEAN_BY_CLIENTS,
    MEAN_BY_EXAMPLES,
    Aggregate,
    Aggregation,
    Algorithm,
    ClientData,
    ClientOutput,
    Gathered,
    Mean,
    mean_over,
)
from pflalign_jax.federated.class_statistics import class_features, label_counts
from pflalign_jax.federated.client_store import StoreError
from pflalign_jax.federated.federation import federate
from pflalign_jax.federated.inject_hyperparams import inject_hyperparams
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
from pflalign_jax.federated.message_size import message_shapes
from pflalign_jax.federated.metrics import ClientScores, summarise
from pflalign_jax.federated.param_parts import combine_params, part_mask, partition_params
from pflalign_jax.federated.participation import Participation, Turnout

__all__ = [
    "GATHERED",
    "MEAN_BY_CLIENTS",
    "MEAN_BY_EXAMPLES",
    "Aggregate",
    "Aggregation",
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
    "combine_params",
    "federate",
    "inject_hyperparams",
    "label_counts",
    "local_sgd",
    "local_training",
    "mean_over",
    "message_shapes",
    "part_mask",
    "participation",
    "partition_params",
    "projected",
    "proximal",
    "summarise",
]
