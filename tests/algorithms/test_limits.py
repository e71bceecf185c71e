"""Limits in which algorithms must coincide, to float tolerance, on ragged clients."""

import functools

import jax
import numpy as np
import pytest

from pflalign_jax import algorithms
from pflalign_jax.datasets import digits, select_clients
from pflalign_jax.federated import federate
from pflalign_jax.models import mlp

MODEL = mlp(10, hidden=(8,))
DATA = digits(num_clients=5, alpha=0.3)
WORK = {"local_epochs": 2, "batch_size": 10}


@functools.cache
def baseline(name):
    """Return the personal models of FedAvg or local training."""
    return models({"fedavg": FEDAVG, "local": LOCAL, "fedavg, second key": SECOND_KEY}[name])


def models(algorithm, data=DATA, rounds=2):
    """Return all personal models after some rounds, on the host."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("clients",))
    federation = federate(algorithm, MODEL, data, mesh=mesh)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    return [
        jax.tree.map(np.asarray, federation.personal_params(state, k))
        for k in range(data.num_clients)
    ]


def global_model(algorithm, data=DATA, rounds=2):
    federation = federate(algorithm, MODEL, data)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    return algorithm.global_params(algorithm.broadcast(state.server))


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


FEDAVG = algorithms.fedavg(MODEL, 0.1, **WORK)
SECOND_KEY = FEDAVG._replace(
    client_update=lambda server, client, data, key: FEDAVG.client_update(
        server, client, data, jax.random.split(key)[1]
    )
)
"""FedAvg with the batches of a method that learns something with the first half of its key."""
LOCAL = algorithms.local(MODEL, 0.1, **WORK)
AS_FEDAVG = {
    "fedprox, μ = 0": algorithms.fedprox(MODEL, 0.1, mu=0.0, **WORK),
    "fedavgm, no momentum": algorithms.fedavgm(MODEL, 0.1, momentum=0.0, **WORK),
    "fedper, no head": algorithms.fedper(MODEL, 0.1, head=(), **WORK),
    "lgfedavg, all head": algorithms.lgfedavg(MODEL, 0.1, head=("*",), **WORK),
    "ifca, one cluster": algorithms.ifca(MODEL, 0.1, num_clusters=1, **WORK),
    "apfl, α = 0": algorithms.apfl(MODEL, 0.1, alpha=0.0, adaptive=False, **WORK),
    "pflalign, sgd": algorithms.pflalign(MODEL, 0.1, precondition=False, realignment=False, **WORK),
}
AS_LOCAL = {
    "ditto, λ = 0": algorithms.ditto(MODEL, 0.1, lam=0.0, **WORK),
    "apfl, α = 1": algorithms.apfl(MODEL, 0.1, alpha=1.0, adaptive=False, **WORK),
    "fedper, all head": algorithms.fedper(MODEL, 0.1, head=("*",), **WORK),
    "lgfedavg, no head": algorithms.lgfedavg(MODEL, 0.1, head=(), **WORK),
}


@pytest.mark.parametrize(
    "name",
    [
        # Both are worked out by hand in test_baselines.py, too.
        pytest.param(n, marks=pytest.mark.slow if n.startswith(("fedavgm", "apfl")) else [])
        for n in AS_FEDAVG
    ],
)
def test_as_fedavg(name):
    assert_close(models(AS_FEDAVG[name]), baseline("fedavg"))


def test_fedala_without_weights_is_fedavg():
    fedala = algorithms.fedala(MODEL, 0.1, head=(), **WORK)
    assert_close(models(fedala), baseline("fedavg, second key"))


@pytest.mark.parametrize("name", AS_LOCAL)
def test_as_local(name):
    assert_close(models(AS_LOCAL[name]), baseline("local"))


def test_dittos_global_model_is_fedavgs():
    ditto = algorithms.ditto(MODEL, 0.1, lam=0.5, **WORK)
    assert_close(global_model(ditto), global_model(FEDAVG))


def test_fedrods_generic_model_is_fedavgs_where_classes_are_balanced():
    """With equal counts of all classes the balanced softmax loss is the cross-entropy."""
    even = digits(num_clients=3, partition="iid", validation_fraction=0.0, split_by="random")
    kept = [np.flatnonzero(even.y == c)[:60] for c in range(10)]
    parts = np.stack(kept).reshape(10, 3, 20).transpose(1, 0, 2).reshape(3, -1)
    train = even.splits["train"]._replace(indices=parts.ravel(), offsets=np.arange(4) * 200)
    data = even._replace(splits={**even.splits, "train": train})
    fedrod = algorithms.fedrod(MODEL, 0.1, num_classes=10, **WORK)
    assert_close(global_model(fedrod, data), global_model(FEDAVG, data))


def test_fedproto_without_pull_is_local_training():
    fedproto = algorithms.fedproto(MODEL, 0.1, num_classes=10, lam=0.0, **WORK)
    federation = federate(fedproto, MODEL, DATA)
    state = federation.init(jax.random.key(0))
    for _ in range(2):
        state, _ = federation.run_round(state)
    own = [federation.client_state(state, k).params for k in range(DATA.num_clients)]
    assert_close(own, baseline("local"))


@pytest.mark.parametrize("name", ["scaffold"])
def test_one_client_alone_is_fedavg(name):
    alone = select_clients(DATA, np.array([2]))
    algorithm = getattr(algorithms, name)(MODEL, 0.1, num_clients=1, **WORK)
    assert_close(models(algorithm, alone), models(FEDAVG, alone))
