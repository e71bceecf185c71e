"""From tables of scores on devices to scores by client, on the host."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.client_states import Staged
from pflalign_jax.federated.metrics import ClientScores


def named_scores(
    dataset: FederatedDataset, splits: Sequence[str], parts: Iterable[tuple[Staged, Any]]
) -> dict[str, ClientScores]:
    """Return `ClientScores` in the dataset's order from ``(Staged, {model: table})`` pairs."""
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
