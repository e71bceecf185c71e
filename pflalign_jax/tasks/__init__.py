"""Tasks: what a model is to learn, its loss and its metrics."""

from collections.abc import Callable, Mapping

from pflalign_jax.tasks import metrics
from pflalign_jax.tasks.metrics import Metric, mean_metric
from pflalign_jax.tasks.task import (
    Task,
    binary,
    classification,
    infer_task,
    multilabel,
    next_token,
    regression,
)

TASKS: Mapping[str, Callable[[], Task]] = {
    "classification": classification,
    "binary": binary,
    "multilabel": multilabel,
    "regression": regression,
    "next_token": next_token,
}
"""Name to the function that makes the task."""

__all__ = [
    "TASKS",
    "Metric",
    "Task",
    "binary",
    "classification",
    "infer_task",
    "mean_metric",
    "metrics",
    "multilabel",
    "next_token",
    "regression",
]
