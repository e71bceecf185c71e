"""pFLAlign-JAX: gradient alignment for personalised federated learning."""

import importlib
from typing import TYPE_CHECKING, Any

from pflalign_jax import (
    algorithms,
    certificates,
    datasets,
    diagnostics,
    federated,
    messages,
    models,
    tasks,
)
from pflalign_jax.align import (
    AlignState,
    align_transform,
    aligned_part,
    direction,
    new_round,
    preconditioner,
    realign,
)
from pflalign_jax.errors import UserError
from pflalign_jax.federated import (
    Aggregation,
    Algorithm,
    ClientData,
    ClientOutput,
    Federation,
    FederationState,
    RoundResult,
    federate,
    local_training,
    participation,
    summarise,
)
from pflalign_jax.models import Model

if TYPE_CHECKING:
    from pflalign_jax import runs
    from pflalign_jax.runs import CheckpointError, Run, RunError
    from pflalign_jax.runs import load as load_run

__version__ = "0.1.0"

__all__ = [
    "Aggregation",
    "Algorithm",
    "AlignState",
    "CheckpointError",
    "ClientData",
    "ClientOutput",
    "Federation",
    "FederationState",
    "Model",
    "RoundResult",
    "Run",
    "RunError",
    "UserError",
    "algorithms",
    "align_transform",
    "aligned_part",
    "certificates",
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
    "tasks",
]


def __getattr__(name: str) -> Any:
    """Return `runs`, or what it has for the root, imported when it is first asked for.

    Configs and checkpoints need packages that take half as long as JAX to start. Who trains in a
    loop of their own does not wait for them.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    runs = importlib.import_module(f"{__name__}.runs")
    return {"runs": runs, "load_run": runs.load}.get(name) or getattr(runs, name)


def __dir__() -> list[str]:
    """Return all public names, also of what is not imported yet."""
    return __all__
