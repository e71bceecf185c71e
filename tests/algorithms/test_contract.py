"""What every algorithm must do: learn, not depend on devices or chunks, keep its states' shapes."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from make import ADAPTERS_ONLY, make

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.datasets import FederatedDataset, Owned
from pflalign_jax.federated import federate, summarise

SMALL = models.mlp(10, hidden=(12,))
DIGITS = functools.partial(datasets.digits, alpha=0.1, split_by="random")
RATES = {"pflalign": 5.0, "fedamp": 0.3, "pfedme": 0.05, "gpfl": 0.01}


class Normed(nn.Module):
    """A small network with a normalisation layer, for FedBN."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(nn.relu(x))


NORMED = models.from_flax(Normed(), head="Dense_1")
FAST = {"ditto", "fedavg", "fedcp", "fedproto", "pflalign", "scaffold"}
"""Others are like one of these; all are worked out by hand in other files."""


def model_for(name):
    """Return a small model that an algorithm works with."""
    if name in ADAPTERS_ONLY:
        params = SMALL.init(jax.random.key(7), np.zeros((1, 8, 8, 1), np.float32))
        return models.lora(SMALL, params, rank=4)
    return NORMED if name == "fedbn" else SMALL


WITH_FEATURES = (
    *("fedrod", "fedproto", "feddbe", "fedpac", "fedcp", "gpfl", "moon", "fedntd", "knnper", "fml"),
    *("fedas", "fedgh", "fedphp", "fedem", "pfedsim"),
)


def named(fast):
    """Parametrise over all algorithms, those not in ``fast`` marked as slow."""
    return pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=[] if n in fast else pytest.mark.slow) for n in algorithms.NAMES],
    )


def trained(name, data, model, devices, rounds, cohort_size=None, num_classes=10, **options):
    rate = RATES.get(name, 0.1)
    algorithm = make(name, model, rate, num_classes, data.num_clients, batch_size=10)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("clients",))
    federation = federate(algorithm, model, data, mesh=mesh, cohort_size=cohort_size, **options)
    state = federation.init(jax.random.key(0))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    for _ in range(rounds):
        state, result = federation.run_round(state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == shapes
    assert np.isfinite(float(result.metrics["loss"]))
    return federation, state


@named(FAST)
def test_learns_skewed_digits(name):
    federation, state = trained(name, DIGITS(num_clients=10), model_for(name), 2, 12)
    scores = summarise(federation.evaluate(state))
    adapted = scores["accuracy/test/personal/adapted/mean"]
    assert adapted > 0.65, adapted
    if name not in ("local", "fedavg"):
        assert scores["accuracy/test/personal/received/mean"] > 0.15
    if name in ("pflalign", "ditto", "apfl", "fedrod", "fedala", "feddbe", "pfedme"):
        assert scores["accuracy/test/personal/received/mean"] > scores["accuracy/test/global/mean"]
    if name in ("perfedavg", "fedbabu"):
        assert adapted > scores["accuracy/test/global/mean"]


@pytest.mark.parametrize(
    "name",
    ["fedcp", *(pytest.param(n, marks=pytest.mark.slow) for n in WITH_FEATURES if n != "fedcp")],
)
def test_labels_at_every_position_of_a_sequence(name):
    """Methods that look at features take the positions of a sequence for examples."""
    x = np.random.default_rng(0).integers(0, 5, (12, 6)).astype(np.uint16)
    parts = {"train": (0, 4, 8), "validation": (8, 8, 8), "test": (8, 10, 12)}
    splits = {k: Owned(np.arange(v[0], v[-1]), np.array(v) - v[0]) for k, v in parts.items()}
    data = FederatedDataset(
        "text", x, np.roll(x, -1, axis=1).astype(np.int32), 5, splits,
        np.array(["a", "b"]), np.arange(2, dtype=np.int32), np.float32(0), np.float32(1),
    )  # fmt: skip
    federation, state = trained(name, data, models.lstm(5, 3, 4), 1, 2, num_classes=5)
    scores = federation.evaluate(state)["test/personal/adapted"]
    assert np.isfinite(scores.loss).all() and scores.examples.tolist() == [2, 2]


@named({"fedproto"})  # pFLAlign's, FedAvg's and local's is in tests/federated
def test_neither_devices_nor_chunks_matter(name):
    data = DIGITS(num_clients=5, fraction=0.15, num_new_clients=2)
    losses, model = [], model_for(name)
    for devices, chunk in ((1, 1), (2, 2)):
        federation, state = trained(name, data, model, devices, 2, 4, client_chunk=chunk)
        scores = {**federation.evaluate(state), **federation.evaluate_new(state)}
        losses.append({key: score.loss for key, score in scores.items()})
    assert {"test/personal/received", "new_clients/personal/adapted"} <= set(losses[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), losses[1], losses[0]
    )


def test_only_messages_leave_clients():
    """What is reduced has the message's size: personal parts, v, u and directions stay."""
    data, sizes = DIGITS(num_clients=5, fraction=0.15), {}
    for name in ("fedavg", "fedper", "lgfedavg", "pflalign", "ditto", "local", "fedproto"):
        algorithm = make(name, SMALL, 0.1, 10, 5)
        sizes[name] = federate(algorithm, SMALL, data).bytes_per_round[0] // (5 * 4)
    whole = 64 * 12 + 12 + 12 * 10 + 10
    assert sizes == {
        "fedavg": whole, "pflalign": whole, "ditto": whole, "local": 0,
        "fedper": 64 * 12 + 12, "lgfedavg": 12 * 10 + 10, "fedproto": 10 * 12 + 10,
    }  # fmt: skip
