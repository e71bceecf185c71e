"""pFLAlign-JAX: gradient alignment for personalised federated learning."""

from pflalign_jax import algorithms, datasets, diagnostics, federated, messages, models, runs
from pflalign_jax.align import (
    AlignState,
    align_transform,
    direction,
    new_round,
    preconditioner,
    realign,
)
from pflalign_jax.errors import UserError
from pflalign_jax.federated import (
    Algorithm,
    Federation,
    federate,
    local_training,
    participation,
    summarise,
)
from pflalign_jax.models import Model
from pflalign_jax.runs import Run, RunError
from pflalign_jax.runs import load as load_run

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "AlignState",
    "Federation",
    "Model",
    "Run",
    "RunError",
    "UserError",
    "algorithms",
    "align_transform",
    "datasets",
    "diagnostics",
    "direction",
    "federate",
    "federated",
    "load_run",
    "local_training",
    "messages",
    "models",
    "new_round",
    "participation",
    "preconditioner",
    "realign",
    "runs",
    "summarise",
]
