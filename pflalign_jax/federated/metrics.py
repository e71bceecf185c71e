"""Scores of clients, and their full names: split / model / stage / statistic over clients."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.datasets.features import normalise
from pflalign_jax.models import example_hits, example_losses


class ClientScores(NamedTuple):
    """One model's scores on one split, client by client, in the dataset's order.

    Attributes:
      examples: ``[K]`` int64, examples scored; 0 for a client without any in this split.
      accuracy: ``[K]`` float64 in [0, 1]; NaN without examples.
      loss: ``[K]`` float64, mean cross-entropy in nats; NaN without examples.
    """

    examples: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray


def score_client(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    x: jax.Array,
    y: jax.Array,
    start: jax.Array,
    size: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    *,
    batch_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Score one model on one client's examples ``x[start : start + size]``.

    Returns:
      Sums over the client's examples, float32 scalars: right predictions, and loss in nats.
    """

    def step(i, carry):
        hits, losses = carry
        position = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        rows = start + jnp.minimum(position, jnp.maximum(size - 1, 0))
        inputs = normalise(x.at[rows].get(mode="clip"), mean, std)
        labels = y.at[rows].get(mode="clip")
        logits = apply(params, inputs)
        mask = (position < size).astype(jnp.float32)
        hits += jnp.sum(example_hits(logits, labels) * mask)
        losses += jnp.sum(example_losses(logits, labels).astype(jnp.float32) * mask)
        return hits, losses

    steps = (size + batch_size - 1) // batch_size
    return jax.lax.fori_loop(0, steps, step, (jnp.zeros(()), jnp.zeros(())))


def summarise(scores: Mapping[str, ClientScores]) -> dict[str, float]:
    """Reduce per-client scores to named statistics.

    Clients without examples in a split do not count there. Statistics over clients: ``mean``
    (clients equal), ``weighted`` (by examples), ``std``, ``worst_decile`` (mean of the worst 10 %
    of clients, at least one), and for accuracy ``min``.

    Args:
      scores: name ``split/model[/stage]`` to `ClientScores`.

    Returns:
      ``accuracy/<name>/<statistic>`` in [0, 1] and ``loss/<name>/<statistic>`` in nats.

    >>> two = ClientScores(np.array([1, 3]), np.array([1.0, 0.0]), np.array([0.5, 1.5]))
    >>> summary = summarise({"test/global": two})
    >>> summary["accuracy/test/global/mean"], summary["accuracy/test/global/weighted"]
    (0.5, 0.25)
    """
    summary = {}
    for name, score in scores.items():
        scored = score.examples > 0
        weights = score.examples[scored]
        if not len(weights):
            continue
        worst = -(-len(weights) // 10)
        for quantity, values, sign in (
            ("accuracy", score.accuracy[scored], 1),
            ("loss", score.loss[scored], -1),
        ):
            statistics = {
                "mean": values.mean(),
                "weighted": np.average(values, weights=weights),
                "std": values.std(),
                "worst_decile": (sign * np.sort(sign * values)[:worst]).mean(),
            }
            if quantity == "accuracy":
                statistics["min"] = values.min()
            for statistic, value in statistics.items():
                summary[f"{quantity}/{name}/{statistic}"] = float(value)
    return summary


def named_scores(
    dataset: FederatedDataset, splits: Sequence[str], parts: Iterable[tuple[Any, Any]]
) -> dict[str, ClientScores]:
    """Gather tables of scores from devices as `ClientScores` in the dataset's order.

    Args:
      dataset: of K clients.
      splits: to gather.
      parts: pairs of `pflalign_jax.federated.client_states.StagedClients`, which say where every
        client is, and ``{model name: score table}``.
    """
    num_clients = dataset.num_clients
    scores = {}
    for staged, tables in parts:
        where, positions = (staged.device, staged.row), staged.positions
        for model_name, split in itertools.product(tables, splits):
            name = f"{split}/{model_name}"
            if name not in scores:
                unknown = np.full(num_clients, np.nan)
                scores[name] = ClientScores(
                    np.zeros(num_clients, np.int64), unknown, unknown.copy()
                )
            examples = dataset.splits[split].sizes[positions]
            count = np.where(examples > 0, examples, np.nan)
            hits, losses = (on_host(a)[where] for a in tables[model_name][split])
            scores[name].examples[positions] = examples
            scores[name].accuracy[positions] = hits / count
            scores[name].loss[positions] = losses / count
    return scores


def on_host(table: jax.Array) -> np.ndarray:
    """Return a ``[D, R]`` table of all devices as float64; every process must call."""
    if not table.is_fully_addressable:
        table = multihost_utils.process_allgather(table, tiled=True)
    return np.asarray(table, float)


def eval_batch_size(dataset: FederatedDataset) -> int:
    """Return a power of two in 8..128 near the mean size of the evaluation sets."""
    sizes = [owned.sizes for split, owned in dataset.splits.items() if split != "train"]
    mean = np.concatenate(sizes).mean() if sizes else 1
    return int(2 ** np.clip(np.ceil(np.log2(max(mean, 1))), 3, 7))
