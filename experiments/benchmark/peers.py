"""The same FedAvg round in other libraries, for `experiments.benchmark --against`.

Needs the extra ``bench``. The peers get what suits them: ordinary convolutions, all cores, data
in memory as float32, no progress bars, no scores.
"""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmark.workloads import BATCH
from pflalign_jax import models
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.errors import UserError


class PeerError(UserError):
    """A comparison that cannot be made; the message says why and what to do."""


def fedjax_round(name: str, dataset: FederatedDataset) -> Callable[[], None]:
    """Return one round of FedJAX's ``federated_averaging``: a jitted step per batch.

    The gradient is of our model's flax version with `lax.conv`.
    """
    if not hasattr(jax, "tree_map"):  # FedJAX 0.0.17 was written for JAX before 0.6
        setattr(jax, "tree_map", jax.tree.map)  # noqa: B010
    fedjax = _imported("fedjax")
    model = models.cnn(10, conv="lax") if name == "cnn" else _plain(name)
    loss = models.cross_entropy(model)
    x, y = _examples(dataset)

    def gradient(params: Any, batch: Any, key: jax.Array) -> Any:
        examples = models.Batch(batch["x"], batch["y"], jax.numpy.ones(len(batch["y"])))
        return jax.grad(loss)(params, examples, key)

    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        gradient,
        fedjax.optimizers.sgd(0.01),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, seed=0),
    )
    clients = [
        (str(k), fedjax.ClientDataset({"x": x[own], "y": y[own]}), jax.random.PRNGKey(k))
        for k, own in enumerate(_owned(dataset))
    ]
    state = algorithm.init(model.init(jax.random.key(0), jax.numpy.asarray(x[:1])))

    def one_round() -> None:
        nonlocal state
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)

    return one_round


def torch_round(name: str, dataset: FederatedDataset) -> Callable[[], None]:
    """Return one FedAvg round as an eager PyTorch loop over clients and batches."""
    torch = _imported("torch")
    nn = torch.nn
    layers = {
        "cnn": lambda: nn.Sequential(
            *(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)),
        ),
        "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        "mlp": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10)
        ),
        "mlp2": lambda: nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 100), nn.ReLU()),
            *(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)),
        ),
    }
    if name not in layers:
        raise PeerError(f"--against=torch has no {name!r} workload, only {sorted(layers)}")
    torch.manual_seed(0)
    server = layers[name]()
    x, y = _examples(dataset)
    x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y.astype(np.int64))
    clients = [(x[own], y[own]) for own in _owned(dataset)]
    criterion = nn.CrossEntropyLoss()

    def one_round() -> None:
        nonlocal server
        total = [torch.zeros_like(p) for p in server.parameters()]
        for features, labels in clients:
            model = copy.deepcopy(server)
            optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
            # An epoch over shuffled batches, as every contender takes it.
            for chosen in torch.randperm(len(labels)).split(BATCH):
                optimiser.zero_grad()
                criterion(model(features[chosen]), labels[chosen]).backward()
                optimiser.step()
            with torch.no_grad():
                for t, p in zip(total, model.parameters(), strict=True):
                    t += p * (len(labels) / len(y))
        with torch.no_grad():
            for p, t in zip(server.parameters(), total, strict=True):
                p.copy_(t)

    return one_round


PEERS = {"fedjax": fedjax_round, "torch": torch_round}


def _plain(name: str) -> models.Model:
    """Return our model of a workload that FedJAX can train as it is."""
    plain = {
        "logistic": functools.partial(models.logistic, 10),
        "mlp": functools.partial(models.mlp, 10, (200,)),
        "mlp2": functools.partial(models.mlp, 10, (100, 100)),
    }
    if name not in plain:
        raise PeerError(f"--against=fedjax has no {name!r} workload, only {['cnn', *plain]}")
    return plain[name]()


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise PeerError(
            f"--against={package} needs the package {package!r} ({error}); "
            "pip install 'pflalign-jax[bench]'"
        ) from error


def _examples(dataset: FederatedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised features as float32, and labels."""
    return (dataset.x.astype(np.float32) - dataset.mean) / dataset.std, dataset.y


def _owned(dataset: FederatedDataset) -> list[np.ndarray]:
    """Return the training examples of each client."""
    train = dataset.splits["train"]
    return [train.of_client(k) for k in range(dataset.num_clients)]
