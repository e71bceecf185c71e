"""Tasks: what a model is to learn, its loss and its metrics."""

from pflalign_jax.tasks import metrics, text_metrics
from pflalign_jax.tasks.metrics import Metric, mean_metric, mean_over_labels
from pflalign_jax.tasks.task import (
    TASKS,
    Moments,
    Task,
    binary,
    classification,
    infer_task,
    multilabel,
    next_token,
    regression,
    target_moments,
)

__all__ = [
    "TASKS",
    "Metric",
    "Moments",
    "Task",
    "binary",
    "classification",
    "infer_task",
    "mean_metric",
    "mean_over_labels",
    "metrics",
    "multilabel",
    "next_token",
    "regression",
    "target_moments",
    "text_metrics",
]
