"""Metrics of a client's examples: what is added up on devices, and the value that follows from it.

``outputs`` are the model's, as `Task.of_model` gives them: ``[B, C]`` logits of C classes,
``[B, 1]`` of one binary label, ``[B, L]`` of L labels that are 0 or 1, or ``[B, M]`` predicted
numbers; ``[B, P, C]`` for sequences of P positions. ``y`` is a batch's ``y`` as stored, with
`IGNORED` at positions of sequences that do not count, and ``mask [B]`` is 1 for real examples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.models import example_hits
from pflalign_jax.models.base import IGNORED, mean_of_counted

CALIBRATION_BINS = 15
"""Bins of equal width that `calibration_error` sorts confidences into."""


class Metric(NamedTuple):
    """A metric as two functions.

    Attributes:
      name: the first word of a score's name, e.g. ``"accuracy"``.
      statistics: ``(outputs, y, mask) -> tree`` of arrays whose shapes do not depend on B, on the
        device. Examples with mask 0 must not count.
      value: ``(statistics, examples) -> [K]`` values, on the host: leaves ``[K, ...]`` in float64,
        one row of each client, and how many examples each has (NaN: none).
      higher_is_better: whether a larger value is better.
      whole: False: the statistics of a client's batches are added up. True: `statistics` is called
        once, with all of the client's examples in one batch (padded to the length of the largest
        client), for what is no sum over examples.
      may_lack: whether NaN means that a client has no value, as one whose labels are all the same
        has no AUC: statistics over clients leave it out and say how many. False: NaN means that a
        model has diverged.
      percent: whether values are shares of 1, which people are shown in percent.
    """

    name: str
    statistics: Callable[[jax.Array, jax.Array, jax.Array], Any]
    value: Callable[[Any, np.ndarray], np.ndarray]
    higher_is_better: bool = True
    whole: bool = False
    may_lack: bool = False
    percent: bool = False


def mean_metric(
    name: str,
    of_example: Callable[[jax.Array, jax.Array], jax.Array],
    higher_is_better: bool = True,
    percent: bool = False,
) -> Metric:
    """Return the mean over examples of ``of_example(outputs, y) -> [B]``.

    The other arguments are fields of `Metric`.

    >>> cost = mean_metric("cost", lambda outputs, y: 5.0 * (y != (outputs[:, 0] > 0)), False)
    >>> total = cost.statistics(jnp.array([[2.0], [-1.0]]), jnp.array([0, 0]), jnp.ones(2))
    >>> float(cost.value(np.float64(total), np.float64(2)))
    2.5
    """

    def statistics(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(of_example(outputs, y).astype(jnp.float32) * mask)

    def value(total: np.ndarray, examples: np.ndarray) -> np.ndarray:
        return total / examples

    return Metric(name, statistics, value, higher_is_better, percent=percent)


class LabelSums(NamedTuple):
    """What `mean_over_labels` adds up over real examples of L labels each.

    Attributes:
      total: float32, of each example's values over its labels that count, divided by L.
      counted, labels: int32, how many labels count, and how many there are.
    """

    total: jax.Array
    counted: jax.Array
    labels: jax.Array


def mean_over_labels(
    name: str,
    of_label: Callable[[jax.Array, jax.Array], jax.Array],
    higher_is_better: bool = True,
    percent: bool = False,
) -> Metric:
    """Return the mean over all labels that count of ``of_label(outputs, y)``, in the shape of y.

    Of sequences it is the mean over tokens: an example weighs as much as it has labels that are
    not `IGNORED`. The other arguments are fields of `Metric`.

    >>> right = mean_over_labels("right", lambda outputs, y: outputs[..., 0] == y)
    >>> outputs = jnp.array([[[1], [2]], [[3], [4]]])
    >>> sums = right.statistics(outputs, jnp.array([[1, 5], [3, IGNORED]]), jnp.ones(2))
    >>> round(float(right.value(sums, np.float64(2))), 4)  # of three tokens
    0.6667
    """

    def statistics(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> LabelSums:
        real = (mask > 0)[:, None]
        # One mask for positions and padding. With another sum than this XLA merged `nll` with the
        # metric `loss`, and the last digit of the loss was another one than before there was nll.
        counts = (y != IGNORED).reshape(len(y), -1) & real
        values = of_label(outputs, y).astype(jnp.float32).reshape(counts.shape)
        total = jnp.sum(jnp.where(counts, values, 0).mean(axis=1))
        labels = jnp.sum(real, dtype=jnp.int32) * counts.shape[1]
        return LabelSums(total, jnp.sum(counts, dtype=jnp.int32), labels)

    def value(sums: Any, examples: np.ndarray) -> np.ndarray:
        # In this order, where every label counts it is the mean over examples to the last bit.
        return sums.total / examples * (sums.labels / sums.counted)

    return Metric(name, statistics, value, higher_is_better, percent=percent)


def top_k(k: int) -> Metric:
    """Return the share of labels that are among the k largest logits, named ``top_<k>``.

    Raises:
      ValueError: for k below 1.
    """
    if k < 1:
        raise ValueError(f"top_k: k={k} is not allowed; it must be >= 1")

    def of_label(outputs: jax.Array, y: jax.Array) -> jax.Array:
        if outputs.ndim != y.ndim + 1 or outputs.shape[-1] < 2:
            raise ValueError("it needs a logit of each of several classes")
        own = jnp.take_along_axis(outputs, jnp.maximum(y, 0)[..., None], axis=-1)
        # By counting what is larger: it needs no sorting, and ties count for the label.
        return jnp.sum(outputs > own, axis=-1) < k

    return mean_over_labels(f"top_{k}", of_label, percent=True)


def _labels(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    """Return logits ``[n, C]``, labels ``[n]`` and mask ``[n]``, a row for every position.

    One binary logit z becomes the two logits 0 and z. Positions that do not count have mask 0.
    """
    outputs, labels = outputs.reshape(y.size, -1), y.reshape(-1).astype(jnp.int32)
    if outputs.shape[1] == 1:
        outputs = jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=1)
    mask = jnp.repeat(mask, y.size // mask.size)
    return outputs, labels, jnp.where(labels == IGNORED, 0, mask)


def _counts(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``[3, C]``: how often each label is predicted and true, true, and predicted."""
    if y.ndim == outputs.ndim:  # L labels, each of them 0 or 1
        predicted, true = (outputs > 0).astype(jnp.float32), y.astype(jnp.float32)
        rows = mask[:, None]
    else:
        logits, labels, mask = _labels(outputs, y, mask)
        predicted = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1])
        true, rows = jax.nn.one_hot(labels, logits.shape[1]), mask[:, None]
    return jnp.stack([jnp.sum(a * rows, axis=0) for a in (predicted * true, true, predicted)])


def _mean_where(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Return ``[K]``: the mean of each row of ``[K, C]`` where ``defined``; NaN without any."""
    return np.where(defined, values, 0).sum(-1) / defined.sum(-1)


def _balanced(counts: np.ndarray, examples: np.ndarray) -> np.ndarray:
    hits, true, _ = np.moveaxis(counts, 1, 0)
    return _mean_where(hits / true, true > 0)


def _f1(counts: np.ndarray, examples: np.ndarray) -> np.ndarray:
    hits, true, predicted = np.moveaxis(counts, 1, 0)
    return _mean_where(2 * hits / (true + predicted), true + predicted > 0)


def _ranks(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``[L, 4]`` int32 for each of L labels, from which the exact AUC follows.

    Positives, negatives, and in two parts the sum over positives of the negatives below plus the
    negatives not above: in units of 4096, and the rest, so that no sum is above 2^31 for a client
    of up to 500,000 examples.
    """

    def of_label(scores: jax.Array, labels: jax.Array) -> jax.Array:
        positive = jnp.logical_and(labels > 0, mask > 0)
        negative = jnp.logical_and(labels <= 0, mask > 0)
        # A score that is no number ranks lowest.
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
        sorted_scores = jnp.sort(jnp.where(negative, scores, jnp.inf))
        num_negative = jnp.sum(negative.astype(jnp.int32))
        below = jnp.searchsorted(sorted_scores, scores, side="left").astype(jnp.int32)
        not_above = jnp.searchsorted(sorted_scores, scores, side="right").astype(jnp.int32)
        # What is not negative stands at the end, as infinity.
        both = jnp.minimum(below, num_negative) + jnp.minimum(not_above, num_negative)
        both = jnp.where(positive, both, 0)
        num_positive = jnp.sum(positive.astype(jnp.int32))
        return jnp.stack([num_positive, num_negative, jnp.sum(both >> 12), jnp.sum(both & 4095)])

    return jax.vmap(of_label, in_axes=1)(outputs, y.reshape(outputs.shape))


def _auc(ranks: np.ndarray, examples: np.ndarray) -> np.ndarray:
    positive, negative, high, low = np.moveaxis(ranks, 2, 0)
    pairs = positive * negative
    return _mean_where((4096 * high + low) / (2 * pairs), pairs > 0)


def _brier_scores(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the Brier score of each example, ``[B]``, averaged over labels or positions."""
    if y.ndim == outputs.ndim or outputs.shape[-1] == 1:
        squares = (jax.nn.sigmoid(outputs) - y.reshape(outputs.shape)) ** 2
        return squares.reshape(len(y), -1).mean(axis=1)
    true = jax.nn.one_hot(y, outputs.shape[-1])
    return mean_of_counted(jnp.sum((jax.nn.softmax(outputs) - true) ** 2, axis=-1), y)


def _confidences(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``[2, bins]``: the sum of confidence minus hits, and the examples of each bin."""
    logits, labels, mask = _labels(outputs, y, mask)
    probabilities = jax.nn.softmax(logits)
    confidence = jnp.max(probabilities, axis=1)
    hits = (jnp.argmax(probabilities, axis=1) == labels).astype(jnp.float32)
    # Bins are open on the left: a confidence on an edge belongs to the lower one.
    bins = jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1
    member = jax.nn.one_hot(jnp.clip(bins, 0), CALIBRATION_BINS) * mask[:, None]
    return jnp.stack([jnp.sum(member * (confidence - hits)[:, None], axis=0), member.sum(axis=0)])


def _calibration(sums: np.ndarray, examples: np.ndarray) -> np.ndarray:
    return np.abs(sums[:, 0]).sum(-1) / sums[:, 1].sum(-1)


def _errors(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return ``[B, M]`` errors of predicted numbers."""
    return outputs - y.reshape(outputs.shape)


def _squared_errors(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(_errors(outputs, y) ** 2 * mask[:, None], axis=0)


def _absolute_errors(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.abs(_errors(outputs, y)).mean(axis=1)


def _sums_of_squares(outputs: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``[2, M]``: squares of the errors, and of the distances of y from its mean."""
    targets, real = y.reshape(outputs.shape).astype(jnp.float32), mask[:, None]
    # From the least target on, so that targets that are all equal have distances of exactly 0.
    targets = targets - jnp.min(jnp.where(real > 0, targets, jnp.inf), axis=0, keepdims=True)
    targets = jnp.where(real > 0, targets, 0)
    mean = jnp.sum(targets, axis=0, keepdims=True) / jnp.maximum(jnp.sum(mask), 1)
    distances = jnp.sum((targets - mean) ** 2 * real, axis=0)
    return jnp.stack([_squared_errors(outputs, y, mask), distances])


def _determination(sums: np.ndarray, examples: np.ndarray) -> np.ndarray:
    errors, distances = np.moveaxis(sums, 1, 0)
    # A model that has diverged is as bad as can be; NaN would say that the client has no value.
    errors = np.where(np.isfinite(errors), errors, np.inf)
    return _mean_where(1 - errors / distances, distances > 0)


accuracy = mean_metric("accuracy", example_hits, percent=True)
"""Share of right predictions; of sequences the mean over examples."""

token_accuracy = mean_over_labels(
    "accuracy", lambda outputs, y: jnp.argmax(outputs, axis=-1) == y, percent=True
)
"""Share of right predictions among tokens."""

nll = mean_over_labels(
    "nll", optax.softmax_cross_entropy_with_integer_labels, higher_is_better=False
)
"""Negative log likelihood per token, in nats."""

perplexity = nll._replace(
    name="perplexity", value=lambda sums, examples: np.exp(nll.value(sums, examples))
)
"""Exponential of `nll`."""

balanced_accuracy = Metric("balanced_accuracy", _counts, _balanced, percent=True)
"""Mean over a client's labels of the share of right predictions among examples of that label."""

macro_f1 = Metric("macro_f1", _counts, _f1, percent=True)
"""Mean F1 over labels that occur in a client's examples or predictions."""

auc = Metric("auc", _ranks, _auc, whole=True, may_lack=True, percent=True)
"""Area under the ROC curve of a binary label, exact with ties; of several labels the mean over
those that have both values. None (NaN) for a client whose examples all have one value."""

brier = mean_metric("brier", _brier_scores, higher_is_better=False)
"""Mean squared error of probabilities; of several classes the sum over classes."""

calibration_error = Metric(
    "calibration_error", _confidences, _calibration, higher_is_better=False, percent=True
)
"""Expected calibration error of the predicted class, over `CALIBRATION_BINS` bins."""

mae = mean_metric("mae", _absolute_errors, higher_is_better=False)
"""Mean absolute error, in the units of y, averaged over targets."""

rmse = Metric(
    "rmse",
    _squared_errors,
    lambda squares, examples: np.sqrt(squares / examples[:, None]).mean(-1),
    higher_is_better=False,
)
"""Root of the mean squared error, in the units of y, averaged over targets."""

r2 = Metric("r2", _sums_of_squares, _determination, whole=True, may_lack=True)
"""Coefficient of determination, averaged over targets that vary within the client; none (NaN) for
a client where no target does."""

FURTHER = {m.name: m for m in (balanced_accuracy, macro_f1, brier, calibration_error)}
"""Metrics that `named_metric` knows by name; tasks have some of them, and others, already."""


def named_metric(name: str) -> Metric:
    """Return a metric of `FURTHER`, or ``"top_<k>"``.

    Raises:
      ValueError: for another name.

    >>> named_metric("top_5").name
    'top_5'
    """
    if name in FURTHER:
        return FURTHER[name]
    k = name.removeprefix("top_")
    if name.startswith("top_") and k.isdigit():
        return top_k(int(k))
    raise ValueError(
        f"metric {name!r} is unknown; choose from {[*FURTHER, 'top_<k>']}, or name your own as "
        "my_module:my_metric"
    )
