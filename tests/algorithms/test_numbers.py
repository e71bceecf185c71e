"""Each algorithm's rounds worked out by hand on one weight.

Two clients pull one weight ``w`` towards their data, loss ½ (w - x)²: client a has one example at
2, client b has three at 0. Everything starts at w = 1; one step per round.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax import algorithms
from pflalign_jax.datasets import FederatedDataset, Owned
from pflalign_jax.federated import federate
from pflalign_jax.models import Model

MODEL = Model(
    init=lambda key, x: {"w": jnp.ones(())},
    apply=lambda params, x: jnp.stack([params["w"] * x[:, 0], 0 * x[:, 0]], axis=1),
)


def loss(params, batch, key):
    return 0.5 * jnp.sum((params["w"] - batch.x[:, 0]) ** 2 * batch.mask) / jnp.sum(batch.mask)


def two_clients():
    train = Owned(np.arange(4), np.array([0, 1, 4]))
    test = Owned(np.array([4, 5]), np.array([0, 1, 2]))
    none = Owned(np.zeros(0, int), np.zeros(3, int))
    x = np.array([[2.0], [0.0], [0.0], [0.0], [1.0], [1.0]], np.float32)
    return FederatedDataset(
        "two", x, np.zeros(6, np.int32), 2, {"train": train, "validation": none, "test": test},
        np.array(["a", "b"]), np.arange(2, dtype=np.int32), np.float32(0), np.float32(1),
    )  # fmt: skip


def rounds(algorithm, count):
    """Return the federation and its state after each round, starting with round 0."""
    federation = federate(algorithm, MODEL, two_clients())
    state = federation.init(jax.random.key(0))
    yield federation, state
    for _ in range(count):
        state, _ = federation.run_round(state)
        yield federation, state


def personal(federation, state):
    return [float(federation.personal_params(state, k)["w"]) for k in range(2)]


def test_fedavg():
    (_, start), (_, first), (federation, second) = rounds(
        algorithms.fedavg(MODEL, 0.5, loss=loss), 2
    )
    assert float(start.server.params["w"]) == 1
    # a: 1 - .5 (1 - 2) = 1.5; b: 1 - .5 (1) = .5; mean (1 * .5 - 3 * .5) / 4 = -.25
    assert float(first.server.params["w"]) == pytest.approx(0.75)
    # a: .75 + .5 * 1.25, b: .75 - .5 * .75; mean (.625 - 3 * .375) / 4 = -.125
    assert float(second.server.params["w"]) == pytest.approx(0.625)
    assert personal(federation, second) == pytest.approx([0.625, 0.625])
    assert federation.bytes_per_round == (8, 8)


def test_local():
    *_, (federation, state) = rounds(algorithms.local(MODEL, 0.5, loss=loss), 2)
    assert personal(federation, state) == pytest.approx([1.75, 0.25])
    assert federation.bytes_per_round == (0, 0)


def test_pflalign():
    *_, (federation, second) = rounds(algorithms.pflalign(MODEL, 10.0, loss=loss), 2)
    # Round 1, a: g = -1, m = -.1, v = .1, P = .1 * .01 / .1 = .01, w_a = 1 + 10 * .01 = 1.1;
    # b: g = 1, w_b = .9. Server: 1 + (1 * .1 - 3 * .1) / 4 = .95.
    delta = {"a": 0.1, "b": -0.1}
    w = 0.95
    after = {}
    for client, target in (("a", 2.0), ("b", 0.0)):
        start = w + delta[client]
        g = start - target
        g_before = 1.0 - target
        v = 0.9 * 0.1 * g_before**2 + 0.1 * g**2
        m = 0.1 * g
        # The recursion: P before was .01.
        p = (1 - 0.1 * g**2 / v) * 0.01 + 0.1 * m**2 / v
        z = abs(m) / math.sqrt(2 * (v - m**2))
        gamma = 0.5 - 0.5 * math.erf(z) * math.copysign(1, -m * delta[client])
        after[client] = start - 10.0 * p * g - gamma * delta[client]
    expected = {client: value - w for client, value in after.items()}
    state_a, state_b = (federation.client_state(second, k) for k in range(2))
    assert float(state_a.direction["w"]) == pytest.approx(expected["a"], abs=1e-6)
    assert float(state_b.direction["w"]) == pytest.approx(expected["b"], abs=1e-6)
    mean = (expected["a"] + 3 * expected["b"]) / 4
    assert float(second.server.params["w"]) == pytest.approx(w + mean, abs=1e-6)
    assert state_a.align.m is None
    assert int(state_a.align.count) == 2


def test_pflalign_starts_from_the_personal_model():
    *_, (federation, state) = rounds(algorithms.pflalign(MODEL, 10.0, loss=loss), 1)
    assert float(state.server.params["w"]) == pytest.approx(0.95)
    assert personal(federation, state) == pytest.approx([1.05, 0.85])
    assert federation.bytes_per_round == (8, 8)


def test_constant_one_forgets_the_direction_every_round():
    constant, none = (
        list(rounds(algorithms.pflalign(MODEL, 0.0, loss=loss, correction=c), 2))[-1][1]
        for c in (1.0, "none")
    )
    assert float(constant.server.params["w"]) == float(none.server.params["w"]) == 1


def test_sgd_variant_is_fedavg_bit_for_bit():
    from pflalign_jax import datasets, models

    data = datasets.digits(num_clients=6, alpha=0.5)
    model = models.mlp(10, hidden=(16,))
    plain = algorithms.pflalign(model, 0.1, precondition=False, realignment=False)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))
    servers = []
    for algorithm in (plain, algorithms.fedavg(model, 0.1)):
        federation = federate(algorithm, model, data, mesh=mesh, cohort_size=4)
        state = federation.init(jax.random.key(0))
        for _ in range(3):
            state, _ = federation.run_round(state)
        servers.append(state.server.params)
    jax.tree.map(np.testing.assert_array_equal, *servers)
