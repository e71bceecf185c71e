"""What every algorithm runs on: local training, the round, evaluation."""

from pflalign_jax.federated import participation, validation
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
from pflalign_jax.federated.client_statistics import (
    ClassFeatures,
    class_counts,
    class_features,
    client_features,
    client_loss,
    hold_out,
)
from pflalign_jax.federated.client_store import StoreError
from pflalign_jax.federated.federate import federate
from pflalign_jax.federated.federation import (
    Federation,
    FederationState,
    RoundResult,
)
from pflalign_jax.federated.inject_hyperparams import inject_hyperparams
from pflalign_jax.federated.local import (
    LocalResult,
    LocalTraining,
    Loss,
    add_drift,
    local_direction,
    local_sgd,
    local_training,
    local_tx,
    projected,
    proximal,
)
from pflalign_jax.federated.message_size import message_shapes, num_bytes
from pflalign_jax.federated.metrics import ClientScores, summarise
from pflalign_jax.federated.param_parts import (
    combine_params,
    first_models,
    part_mask,
    partition_params,
)
from pflalign_jax.federated.participation import Participation, Turnout
from pflalign_jax.federated.sharding import client_mesh
from pflalign_jax.federated.traits import Traits, traits

__all__ = [
    "GATHERED",
    "MEAN_BY_CLIENTS",
    "MEAN_BY_EXAMPLES",
    "Aggregate",
    "Aggregation",
    "Algorithm",
    "ClassFeatures",
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
    "Traits",
    "Turnout",
    "add_drift",
    "class_counts",
    "class_features",
    "client_features",
    "client_loss",
    "client_mesh",
    "combine_params",
    "federate",
    "first_models",
    "hold_out",
    "inject_hyperparams",
    "local_direction",
    "local_sgd",
    "local_training",
    "local_tx",
    "mean_over",
    "message_shapes",
    "num_bytes",
    "part_mask",
    "participation",
    "partition_params",
    "projected",
    "proximal",
    "summarise",
    "traits",
    "validation",
]
