"""What a model is to learn: the loss, what a prediction is, the metrics, and which data fit."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.datasets import DatasetError, FederatedDataset
from pflalign_jax.datasets.features import are_tokens
from pflalign_jax.models import Batch, Model, cross_entropy, example_losses
from pflalign_jax.models.base import IGNORED, mean_of_real, training_outputs
from pflalign_jax.tasks import metrics
from pflalign_jax.tasks.metrics import Metric, mean_metric


class Task(NamedTuple):
    """What goes with data and model.

    Attributes:
      name: e.g. ``"regression"``.
      example_losses: ``(outputs, y) -> [B]``.
      predict: ``outputs -> predictions``: a label, a probability, or a number.
      metrics: what clients are scored by; the first is the headline, by which rounds, step sizes
        and methods are chosen.
      num_outputs: ``dataset -> int``, the outputs that the model needs.
      check: ``dataset -> None``; raises `DatasetError` if ``y`` does not fit.
      outputs: from what the model returns to ``outputs``, in the units of ``y``; None: unchanged.
    """

    name: str
    example_losses: Callable[[jax.Array, jax.Array], jax.Array]
    predict: Callable[[jax.Array], jax.Array]
    metrics: tuple[Metric, ...]
    num_outputs: Callable[[FederatedDataset], int]
    check: Callable[[FederatedDataset], None]
    outputs: Callable[[jax.Array], jax.Array] | None = None

    @property
    def headline(self) -> Metric:
        """The first metric."""
        return self.metrics[0]

    def of_model(self, returned: jax.Array) -> jax.Array:
        """Return ``outputs`` of what a model has returned."""
        return returned if self.outputs is None else self.outputs(returned)

    def loss(self, model: Model) -> Callable[[Any, Batch, jax.Array], jax.Array]:
        """Return ``loss(params, batch, key)``, the mean over the batch's real examples.

        See `training_outputs` of `pflalign_jax.models.base`. A mask of zeros gives a loss of 0.
        """
        if self.example_losses is example_losses:
            return cross_entropy(model)  # which knows models that need no logits for it

        def loss(params: Any, batch: Batch, key: jax.Array) -> jax.Array:
            returned = training_outputs(model, params, batch, key)
            losses = self.example_losses(self.of_model(returned), batch.y)
            return mean_of_real(losses, batch.mask)

        return loss

    def with_metrics(self, *more: Metric) -> "Task":
        """Return the task with further metrics.

        Raises:
          ValueError: for a name that it has already.

        >>> [m.name for m in classification().with_metrics(metrics.macro_f1).metrics]
        ['accuracy', 'loss', 'macro_f1']
        """
        names = [metric.name for metric in (*self.metrics, *more)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task {self.name!r} has the metric {twice[0]!r} already")
        return self._replace(metrics=(*self.metrics, *more))

    def with_headline(self, name: str) -> "Task":
        """Return the task with the metric of this name as its headline.

        Raises:
          ValueError: if it has no such metric.
        """
        names = [metric.name for metric in self.metrics]
        if name not in names:
            raise ValueError(f"task {self.name!r} has no metric {name!r}; it has {names}")
        first = self.metrics[names.index(name)]
        return self._replace(metrics=(first, *(m for m in self.metrics if m.name != name)))


def classification() -> Task:
    """Return the task of one label out of C: ``y [N]`` in ``0..C-1``, C logits, cross-entropy.

    ``y`` may be ``[N, P]``, a label at every position of a sequence.
    """
    return Task(
        "classification",
        example_losses,
        predict=lambda outputs: jnp.argmax(outputs, axis=-1),
        metrics=(metrics.accuracy, _loss_metric(example_losses)),
        num_outputs=lambda dataset: dataset.num_classes,
        check=_check_classes,
    )


def next_token() -> Task:
    """Return the task of the next token at every position: ``y [N, P]``, C logits at each.

    A position with the label `IGNORED` (-1), which is padding or part of a prompt, does not count.
    The loss of an example is the mean over its positions that count, 0 without any; the loss of a
    client, the metric ``loss``, is the mean over examples. ``accuracy``, ``nll`` (the negative log
    likelihood in nats) and ``perplexity`` are over a client's tokens that count, so that a long
    example weighs more than a short one. Where all positions count, ``nll`` is the ``loss``.
    """

    def check(dataset: FederatedDataset) -> None:
        if dataset.y.ndim != 2:
            raise DatasetError(
                f"{dataset.name}: task 'next_token' needs y of shape [N, P], a token at every "
                f"position; it is {list(dataset.y.shape)}"
            )
        _check_classes(dataset, ignored=True)
        for group in (dataset, dataset.new_clients):
            if group is not None:
                _check_counted(group)

    chosen = (metrics.token_accuracy, _loss_metric(example_losses), metrics.nll, metrics.perplexity)
    return classification()._replace(name="next_token", metrics=chosen, check=check)


def binary() -> Task:
    """Return the task of one label that is 0 or 1: ``y [N]``, one logit, log loss.

    A prediction is the probability of 1. The headline is the AUC: it needs no threshold, and a
    model that always says 0 does not score 97 % where 3 % are 1.
    """
    chosen = (metrics.auc, _binary_accuracy, metrics.balanced_accuracy, metrics.brier)
    return Task(
        "binary",
        _log_losses,
        predict=lambda outputs: jax.nn.sigmoid(outputs[..., 0]),
        metrics=(*chosen, _loss_metric(_log_losses)),
        num_outputs=lambda dataset: 1,
        check=lambda dataset: _check_binary(dataset, "binary", 1),
    )


def multilabel() -> Task:
    """Return the task of L labels that are each 0 or 1: ``y [N, L]``, L logits, mean log loss.

    A prediction is the probability of 1 of each label. Accuracy is the share of right labels.
    """
    chosen = (metrics.auc, _binary_accuracy, metrics.macro_f1, metrics.brier)
    return Task(
        "multilabel",
        _log_losses,
        predict=jax.nn.sigmoid,
        metrics=(*chosen, _loss_metric(_log_losses)),
        num_outputs=lambda dataset: dataset.y.shape[1],
        check=lambda dataset: _check_binary(dataset, "multilabel", 2),
    )


Moments = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of each of M targets, ``[M]`` float32 each."""


def target_moments(dataset: FederatedDataset) -> Moments:
    """Return mean and standard deviation of the training targets of clients that train.

    Of a target that is constant the standard deviation is 1.

    Raises:
      DatasetError: if ``y`` are no finite numbers.
    """
    _check_numbers(dataset)
    train = dataset.y[dataset.splits["train"].indices]
    train = train.reshape(len(train), -1).astype(np.float64)
    mean, std = train.mean(0).astype(np.float32), train.std(0).astype(np.float32)
    return mean, np.where(std > 0, std, np.float32(1))


def regression(standardise: FederatedDataset | Moments | None = None) -> Task:
    """Return the task of one or M numbers: ``y [N]`` or ``[N, M]``, M outputs, squared error.

    Args:
      standardise: the data whose training targets (of clients that train) have mean 0 and standard
        deviation 1 in what the model returns, or these two numbers as `target_moments` returns
        them. Metrics and predictions stay in the units of ``y``, the loss is in squared standard
        deviations. None: the model returns ``y`` as it is.

    Raises:
      DatasetError: if ``standardise`` has no fitting ``y``.
    """
    mean, std = np.zeros(1, np.float32), np.ones(1, np.float32)
    if isinstance(standardise, FederatedDataset):
        mean, std = target_moments(standardise)
    elif standardise is not None:
        mean, std = standardise

    def outputs(returned: jax.Array) -> jax.Array:
        # By dividing by one, not by a copy per row: the tests forbid broadcasting between ranks.
        return returned * std[None] + mean[None]

    def squared_errors(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(((outputs - y.reshape(outputs.shape)) / std[None]) ** 2, axis=1)

    def num_outputs(dataset: FederatedDataset) -> int:
        return 1 if dataset.y.ndim == 1 else int(dataset.y.shape[1])

    return Task(
        "regression",
        squared_errors,
        predict=lambda outputs: outputs,
        metrics=(metrics.rmse, metrics.mae, metrics.r2, _loss_metric(squared_errors)),
        num_outputs=num_outputs,
        check=_check_numbers,
        outputs=outputs if standardise is not None else None,
    )


TASKS: Mapping[str, Callable[[], Task]] = {
    "classification": classification,
    "binary": binary,
    "multilabel": multilabel,
    "regression": regression,
    "next_token": next_token,
}
"""Name to the function that makes the task."""


def infer_task(dataset: FederatedDataset) -> Task:
    """Return the task that the data are for: ``dataset.task``, or what ``y`` leaves no doubt about.

    Integers ``[N]`` are classes; integers ``[N, P]`` with tokens for features are next tokens, and
    with others classes at every position unless they are 0 and 1 only; numbers that are not whole
    are targets of a regression.

    Raises:
      DatasetError: for others, naming the tasks that are possible.
    """
    y, name = dataset.y, dataset.name
    if dataset.task is not None:
        if dataset.task not in TASKS:
            raise DatasetError(
                f"{name}: task={dataset.task!r} is unknown; choose from {tuple(TASKS)}"
            )
        return TASKS[dataset.task]()
    if np.issubdtype(y.dtype, np.integer):
        if y.ndim == 1:
            return classification()
        if are_tokens(dataset.x.dtype):
            return next_token()
        if y.min(initial=0) >= 0 and y.max(initial=0) <= 1:
            raise DatasetError(
                f"{name}: y is {list(y.shape)} of 0 and 1, which may be several labels of each "
                "example or one at every position; say task='multilabel' or task='classification'"
            )
        return classification()
    if np.issubdtype(y.dtype, np.floating):
        if not (y == np.round(y)).all():
            return regression()
        raise DatasetError(
            f"{name}: y is {y.dtype} with {len(np.unique(y))} different whole numbers, which may "
            "be classes or numbers to predict; say task='regression' or 'binary', or make y "
            "integers for task='classification'"
        )
    raise DatasetError(f"{name}: y is {y.dtype}; it must be integers or floats")


def _loss_metric(losses: Callable[[jax.Array, jax.Array], jax.Array]) -> Metric:
    return mean_metric("loss", losses, higher_is_better=False)


def _log_losses(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the log loss of each example, ``[B]``, averaged over labels."""
    y = y.reshape(outputs.shape).astype(outputs.dtype)
    return optax.sigmoid_binary_cross_entropy(outputs, y).mean(axis=1)


def _binary_hits(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the share of right labels of each example, ``[B]``, at a probability of 1/2."""
    hits = (outputs > 0) == (y.reshape(outputs.shape) > 0)
    return hits.astype(jnp.float32).mean(axis=1)


_binary_accuracy = mean_metric("accuracy", _binary_hits, percent=True)


def _check_classes(dataset: FederatedDataset, ignored: bool = False) -> None:
    """Raise an error for labels that are no classes; ``ignored``: `IGNORED` may be among them."""
    y, num_classes = dataset.y, dataset.num_classes
    if not np.issubdtype(y.dtype, np.integer):
        raise DatasetError(
            f"{dataset.name}: y is {y.dtype}; task 'classification' needs integers. Use task "
            "'regression' for numbers to predict"
        )
    least = IGNORED if ignored else 0
    bad = np.flatnonzero((y < least) | (y >= num_classes))
    if len(bad):
        raise DatasetError(
            f"{dataset.name}: label {y.flat[bad[0]]} of example {bad[0] // max(y[0].size, 1)} is "
            f"outside 0..{num_classes - 1}; correct it, or num_classes={num_classes}"
        )


def _check_counted(dataset: FederatedDataset) -> None:
    """Raise an error for a client whose examples of a split have no label that counts."""
    counts = (dataset.y != IGNORED).any(axis=1)
    if counts.all():
        return
    for split, (indices, offsets) in dataset.splits.items():
        before = np.concatenate([[0], np.cumsum(counts[indices])])[offsets]
        empty = (np.diff(offsets) > 0) & (np.diff(before) == 0)
        if empty.any():
            k = int(np.argmax(empty))
            raise DatasetError(
                f"{dataset.name}: {empty.sum()} clients have {split} examples without any label "
                f"that counts (all are {IGNORED}), the first is {str(dataset.client_names[k])!r} "
                f"with {offsets[k + 1] - offsets[k]} of them; leave out such examples"
            )


def _check_binary(dataset: FederatedDataset, task: str, ndim: int) -> None:
    y, shape = dataset.y, "[N]" if ndim == 1 else "[N, L]"
    if y.ndim != ndim:
        raise DatasetError(
            f"{dataset.name}: task {task!r} needs y of shape {shape}; it is {list(y.shape)}"
        )
    bad = np.flatnonzero((y != 0) & (y != 1))
    if len(bad):
        raise DatasetError(
            f"{dataset.name}: label {y.flat[bad[0]]} of example {bad[0] // max(y[0].size, 1)} is "
            f"not 0 or 1, as task {task!r} needs; correct it, or use task 'classification'"
        )


def _check_numbers(dataset: FederatedDataset) -> None:
    y = dataset.y
    if y.ndim not in (1, 2):
        raise DatasetError(
            f"{dataset.name}: task 'regression' needs y of shape [N] or [N, M]; it is "
            f"{list(y.shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise DatasetError(
            f"{dataset.name}: target {y.flat[bad[0]]} of example {bad[0] // max(y[0].size, 1)} is "
            "not a finite number; correct it or leave the example out"
        )
