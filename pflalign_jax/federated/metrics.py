"""Scores of clients, and their full names: split / model / stage / statistic over clients."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.datasets.features import input_dtype, normalise
from pflalign_jax.models import Model
from pflalign_jax.tasks import Metric, Task


class ClientScores(NamedTuple):
    """One model's scores on one split, client by client, in the dataset's order.

    Attributes:
      examples: ``[K]`` int64, examples scored; 0 for a client without any in this split.
      values: name of a metric to ``[K]`` float64; NaN without examples, and where the metric has no
        value for a client.
      metrics: those metrics, the headline first.
    """

    examples: np.ndarray
    values: Mapping[str, np.ndarray]
    metrics: tuple[Metric, ...]

    @property
    def accuracy(self) -> np.ndarray:
        """``[K]`` accuracy in [0, 1], of tasks that have it."""
        return self._of("accuracy")

    @property
    def loss(self) -> np.ndarray:
        """``[K]`` mean loss; cross-entropy in nats for a classification."""
        return self._of("loss")

    @property
    def headline(self) -> np.ndarray:
        """``[K]`` values of the headline metric."""
        return self.values[self.metrics[0].name]

    def _of(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise AttributeError(f"these scores have no {name!r}; they have {list(self.values)}")
        return self.values[name]


def no_scores(num_clients: int, metrics: tuple[Metric, ...]) -> ClientScores:
    """Return the scores of K clients without examples, to be filled in."""
    values = {metric.name: np.full(num_clients, np.nan) for metric in metrics}
    return ClientScores(np.zeros(num_clients, np.int64), values, metrics)


class Scoring(NamedTuple):
    """How models are scored on devices.

    Attributes:
      task: what is scored.
      batch_size: examples per step.
      longest: the most examples of a client in a split that is scored.
      shapes: metric name to the shapes of its statistics.
    """

    task: Task
    batch_size: int
    longest: int
    shapes: Mapping[str, Any]


def scoring_of(
    task: Task, model: Model, dataset: FederatedDataset, batch_size: int | None
) -> Scoring:
    """Return how the clients of a dataset are scored.

    Args:
      task: whose metrics are computed.
      model: its outputs have the shapes of every personal model's, too.
      dataset: with its new clients.
      batch_size: examples per step; None: `eval_batch_size`.

    Raises:
      DatasetError: if ``y`` does not fit the task.
      ValueError: if the model does not have the outputs that the task needs, or a metric does not
        take them.
    """
    task.check(dataset)
    x = jax.ShapeDtypeStruct((1, *dataset.x.shape[1:]), input_dtype(dataset))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    if batch_size is None:
        returned = jax.eval_shape(model.apply, params, x)
        batch_size = eval_batch_size(dataset, returned.size * returned.dtype.itemsize)
    x = jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
    returned = jax.eval_shape(model.apply, params, x)
    needed = task.num_outputs(dataset)
    if task.name != "classification" and returned.shape[-1] != needed:
        raise ValueError(
            f"the model has {returned.shape[-1]} outputs, but task {task.name!r} needs {needed} "
            f"for {dataset.name}; make the model with num_classes={needed}"
        )
    outputs = jax.eval_shape(task.of_model, returned)
    y_dtype = jax.dtypes.canonicalize_dtype(dataset.y.dtype)
    y = jax.ShapeDtypeStruct((batch_size, *dataset.y.shape[1:]), y_dtype)
    mask = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    shapes = {}
    for metric in task.metrics:
        try:
            shapes[metric.name] = jax.eval_shape(metric.statistics, outputs, y, mask)
        except (TypeError, ValueError, IndexError) as error:  # one that was made for other tasks
            raise ValueError(
                f"metric {metric.name!r} does not take outputs {list(outputs.shape)} and y "
                f"{list(y.shape)} of task {task.name!r}: {str(error).splitlines()[0]}"
            ) from error
    groups = [dataset] if dataset.new_clients is None else [dataset, dataset.new_clients]
    scored = [d.splits[split].sizes for d in groups for split in d.splits if split != "train"]
    longest = max((int(sizes.max(initial=0)) for sizes in scored), default=0)
    return Scoring(task, batch_size, longest, shapes)


def score_client(
    scoring: Scoring,
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    x: jax.Array,
    y: jax.Array,
    start: jax.Array,
    size: jax.Array,
    mean: jax.Array,
    std: jax.Array,
) -> dict[str, Any]:
    """Score one model on one client's examples ``x[start : start + size]``.

    Returns:
      Metric name to its statistics of the client.
    """
    task, batch_size = scoring.task, scoring.batch_size
    added = [metric for metric in task.metrics if not metric.whole]
    whole = [metric for metric in task.metrics if metric.whole]

    def read(i):
        position = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        rows = start + jnp.minimum(position, jnp.maximum(size - 1, 0))
        inputs = normalise(x.at[rows].get(mode="clip"), mean, std)
        labels = y.at[rows].get(mode="clip")
        outputs = task.of_model(apply(params, inputs))
        return outputs, labels, (position < size).astype(jnp.float32)

    def step(i, carry):
        sums, seen = carry
        batch = read(i)
        sums = {
            metric.name: jax.tree.map(jnp.add, sums[metric.name], metric.statistics(*batch))
            for metric in added
        }
        if whole:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
            seen = jax.tree.map(lambda all, new: write(all, new, i * batch_size), seen, batch)
        return sums, seen

    def zeros(shape):
        return jnp.zeros(shape.shape, shape.dtype)

    sums = {metric.name: jax.tree.map(zeros, scoring.shapes[metric.name]) for metric in added}
    # Of the largest client, in whole batches.
    room = -(-scoring.longest // batch_size) * batch_size
    seen: Any = ()
    if whole:
        shapes = jax.eval_shape(read, jax.ShapeDtypeStruct((), jnp.int32))
        seen = jax.tree.map(lambda a: jnp.zeros((room, *a.shape[1:]), a.dtype), shapes)
    steps = (size + batch_size - 1) // batch_size
    sums, seen = jax.lax.fori_loop(0, steps, step, (sums, seen))
    return sums | {metric.name: metric.statistics(*seen) for metric in whole}


def summarise(scores: Mapping[str, ClientScores]) -> dict[str, float]:
    """Reduce per-client scores to named statistics.

    Clients without examples in a split do not count there. Statistics over clients: ``mean``
    (clients equal), ``weighted`` (by examples), ``std``, ``worst_decile`` (mean of the worst 10 %
    of clients, at least one), and ``min`` of metrics of which more is better. Clients without a
    value of a metric (an AUC of one class) do not count either; ``without`` says how many they are,
    where there are any.

    Args:
      scores: name ``split/model[/stage]`` to `ClientScores`.

    Returns:
      ``<metric>/<name>/<statistic>``, e.g. ``accuracy/test/global/mean`` in [0, 1] and
      ``loss/test/global/mean``.

    >>> from pflalign_jax import tasks
    >>> values = {"accuracy": np.array([1.0, 0.0]), "loss": np.array([0.5, 1.5])}
    >>> two = ClientScores(np.array([1, 3]), values, tasks.classification().metrics)
    >>> summary = summarise({"test/global": two})
    >>> summary["accuracy/test/global/mean"], summary["accuracy/test/global/weighted"]
    (0.5, 0.25)
    """
    summary = {}
    for name, score in scores.items():
        for metric in score.metrics:
            values, has_examples = score.values[metric.name], score.examples > 0
            # NaN of a sum over examples is no missing value: the model has diverged.
            scored = has_examples & ~np.isnan(values) if metric.may_lack else has_examples
            statistics = _statistics(values[scored], score.examples[scored], metric)
            without = int(has_examples.sum() - scored.sum())
            if without:
                statistics["without"] = without
            for statistic, value in statistics.items():
                summary[f"{metric.name}/{name}/{statistic}"] = float(value)
    return summary


def _statistics(values: np.ndarray, weights: np.ndarray, metric: Metric) -> dict[str, Any]:
    """Return the statistics of clients that have a value; {} without any."""
    if not len(values):
        return {}
    worst, sign = -(-len(values) // 10), 1 if metric.higher_is_better else -1
    statistics = {
        "mean": values.mean(),
        "weighted": np.average(values, weights=weights),
        "std": values.std(),
        "worst_decile": (sign * np.sort(sign * values)[:worst]).mean(),
    }
    if metric.higher_is_better:
        statistics["min"] = values.min()
    return statistics


def named_scores(
    dataset: FederatedDataset,
    metrics: tuple[Metric, ...],
    splits: Sequence[str],
    parts: Iterable[tuple[Any, Any]],
) -> dict[str, ClientScores]:
    """Gather tables of statistics from devices as `ClientScores` in the dataset's order.

    Args:
      dataset: of K clients.
      metrics: of the task.
      splits: to gather.
      parts: pairs of `pflalign_jax.federated.client_states.StagedClients`, which say where every
        client is, and ``{model name: score table}``.
    """
    scores = {}
    for staged, tables in parts:
        where, positions = (staged.device, staged.row), staged.positions
        for model_name, split in itertools.product(tables, splits):
            name = f"{split}/{model_name}"
            if name not in scores:
                scores[name] = no_scores(dataset.num_clients, metrics)
            examples = dataset.splits[split].sizes[positions]
            scores[name].examples[positions] = examples
            count = np.where(examples > 0, examples, np.nan)
            for metric in metrics:
                table = tables[model_name][split][metric.name]
                statistics = jax.tree.map(lambda a, where=where: on_host(a)[where], table)
                # Clients without a value divide by 0.
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    values = np.where(examples > 0, metric.value(statistics, count), np.nan)
                scores[name].values[metric.name][positions] = values
    return scores


def on_host(table: jax.Array) -> np.ndarray:
    """Return a ``[D, R]`` table of all devices as float64; every process must call."""
    if not table.is_fully_addressable:
        table = multihost_utils.process_allgather(table, tiled=True)
    return np.asarray(table, float)


MOST_OUTPUTS = 2**26
"""Bytes of a model's outputs that a batch of an evaluation has at most, if it has several rows."""


def eval_batch_size(dataset: FederatedDataset, output_bytes: int) -> int:
    """Return a power of two in 8..128 near the mean size of the evaluation sets.

    It is less where so many outputs, as the logits of a vocabulary at every position, would be
    more than `MOST_OUTPUTS`.

    Args:
      dataset: whose evaluation sets are looked at.
      output_bytes: of the model's outputs of one example.
    """
    sizes = [owned.sizes for split, owned in dataset.splits.items() if split != "train"]
    mean = np.concatenate(sizes).mean() if sizes else 1
    room = np.floor(np.log2(max(MOST_OUTPUTS / output_bytes, 1)))
    return int(2 ** min(np.clip(np.ceil(np.log2(max(mean, 1))), 3, 7), room))
