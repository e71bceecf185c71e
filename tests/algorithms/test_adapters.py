"""Algorithms for adapters: rounds worked out by hand, and limits; see `hand`.

The loss is ½ (a b + head - x)² from a = 1, b = 0, head = 0; client a has one example at 2, client
b three at 0.
"""

import importlib

import hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import ADAPTED, FEATURES, MODEL, adapted_loss, floats, loss, two_clients
from make import ADAPTERS_ONLY

from pflalign_jax import algorithms
from pflalign_jax.federated import Gathered, federate
from pflalign_jax.federated.algorithm import Aggregate
from pflalign_jax.models.lora import drawn_anew, with_merged

FLORA = importlib.import_module("pflalign_jax.algorithms.flora")  # a function hides the name


def made(name, rate, **options):
    return getattr(algorithms, name)(ADAPTED, rate, loss=adapted_loss, **options)


def after(algorithm, rounds, data=None):
    return hand.after(algorithm, rounds, data, ADAPTED)


def by_round(algorithm, rounds):
    """Yield client a's model after every round."""
    federation = federate(algorithm, ADAPTED, two_clients())
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
        yield federation.personal_params(state, 0)


def of(params):
    """Return a, b and head as floats."""
    adapter = params["lora"]["layer"]
    numbers = (adapter["a"][0, 0], adapter["b"][0, 0], params["head"])
    return pytest.approx(tuple(map(float, numbers)), abs=1e-6)


def test_ffa_lora():
    # a's error is -2, b's 0: b and head of a move by 1, a quarter of it counts.
    first, second = by_round(made("ffa_lora", 0.5), 2)
    assert of(first) == (1, 0.25, 0.25)
    # Then errors are -1.5 and 0.5: .75 / 4 - 3 * .25 / 4 = 0.
    assert of(second) == (1, 0.25, 0.25)
    # After two steps in a round A has a gradient, and does not move.
    assert of(after(made("ffa_lora", 0.25, local_epochs=2), 1)[2][0]) == (1, 0.1875, 0.1875)


def test_fedsa_lora():
    # a has b = head = .5 after a round; then its error is -1 and A moves by .125.
    _, clients, models = after(made("fedsa_lora", 0.25), 2)
    assert of(models[0]) == (1 + 0.125 / 4, 0.75, 0.75)
    assert of(models[1]) == (1 + 0.125 / 4, 0, 0)
    assert [client.own["lora"]["layer"]["a"] for client in clients] == [None, None]


def test_rolora():
    first, second, third = by_round(made("rolora", 0.25), 3)
    assert of(first) == (1, 0.125, 0.125)
    # The turn of A: errors are -1.75 and .25, b = .125.
    moved = 0.25 * 0.125 * (1.75 - 3 * 0.25) / 4
    assert of(second) == (1 + moved, 0.125, 0.125 + 0.25 * (1.75 - 3 * 0.25) / 4)
    # And of B again.
    assert float(third["lora"]["layer"]["a"][0, 0]) == 1 + moved
    assert float(third["lora"]["layer"]["b"][0, 0]) != 0.125


def drawn_as_one(key, params):
    """Return adapters with a = 1 and b = 0, as they begin."""
    adapter = params["lora"]["layer"]
    fresh = {**adapter, "a": jnp.ones((1, 1)), "b": jnp.zeros((1, 1))}
    return {**params, "lora": {"layer": fresh}}


def test_flora(monkeypatch):
    monkeypatch.setattr(FLORA, "drawn_anew", drawn_as_one)
    first, second = by_round(made("flora", 0.25), 2)
    assert float(first["lora"]["layer"]["merged"][0, 0]) == pytest.approx(0.125)
    assert of(first) == (1, 0, 0.125)
    # b is 0 again, so errors are -1.75 and .25 as with the other methods.
    assert float(second["lora"]["layer"]["merged"][0, 0]) == pytest.approx(0.1875)
    assert of(second) == (1, 0, 0.1875)


def test_what_flora_merges_is_the_mean_of_the_products():
    rng = np.random.default_rng(0)
    adapters = {"a": rng.normal(size=(3, 4, 2)), "b": rng.normal(size=(3, 2, 5)), "merged": None}
    messages = {"lora": {"layer": adapters}, "head": np.array([1.0, 2.0, 100.0])}
    weights = np.array([1.0, 3.0, 0.0])  # the last did not take part
    inbox = Gathered(*jax.tree.map(jnp.float32, (messages, weights)), ids=None)
    params = {"lora": {"layer": {"a": np.ones((4, 2)), "b": np.zeros((2, 5))}}, "head": np.ones(())}
    algorithm = made("flora", 0.1)
    server, _ = algorithm.init(jax.tree.map(jnp.float32, params), None)
    found = algorithm.server_update(server, Aggregate(inbox, 4.0)).params
    products = [adapters["a"][k] @ adapters["b"][k] for k in range(3)]
    expected = (products[0] + 3 * products[1]) / 4
    np.testing.assert_allclose(found["lora"]["layer"]["merged"], expected, rtol=1e-5)
    assert float(found["head"]) == pytest.approx(1 + (1 + 3 * 2) / 4)


def test_clients_of_flora_draw_a_anew():
    params = with_merged(ADAPTED.init(None, None))
    params["lora"]["layer"]["b"] += 1
    drawn = [drawn_anew(jax.random.key(i), params) for i in range(2)]
    first, second = (float(one["lora"]["layer"]["a"][0, 0]) for one in drawn)
    assert first != second and max(abs(first), abs(second)) <= 1
    assert float(drawn[0]["lora"]["layer"]["b"][0, 0]) == 0


def test_head_only():
    server, _, models = after(made("head_only", 0.5), 1)
    assert of(models[0]) == (1, 0, 0.25)
    assert float(server.trained["head"]) == pytest.approx(0.25)
    # Of any model: here the body stays 1, and errors are -1 and 1.
    plain = algorithms.head_only(MODEL, 0.5, loss=loss, head=("head",))
    assert floats(hand.after(plain, 1)[2][0]) == {"body": 1, "head": pytest.approx((0.5 - 1.5) / 4)}


@pytest.mark.slow
def test_limits(monkeypatch):
    """One client alone, all that there is as head, the first turn."""
    alone, work = two_clients((1,)), {"local_epochs": 3}
    fedavg = after(made("fedavg", 0.25, **work), 2, alone)[2][0]
    assert_close(after(made("fedsa_lora", 0.25, **work), 2, alone)[2][0], fedavg)
    everything = made("head_only", 0.25, head=("*",), **work)
    assert_close(after(everything, 2)[2][0], after(made("fedavg", 0.25, **work), 2)[2][0])
    turns = [after(made(name, 0.25, **work), 1)[2][0] for name in ("rolora", "ffa_lora")]
    assert_close(*turns)
    # FLoRA of one client has FedAvg's weights after a round that begins with the same A.
    monkeypatch.setattr(FLORA, "drawn_anew", drawn_as_one)
    merged = after(made("flora", 0.25, **work), 1, alone)[0].params
    fedavg = after(made("fedavg", 0.25, **work), 1, alone)[2][0]
    product = fedavg["lora"]["layer"]["a"] @ fedavg["lora"]["layer"]["b"]
    assert_close(merged["lora"]["layer"]["merged"], product)
    assert_close(merged["head"], fedavg["head"])


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_what_is_sent():
    """Numbers that a client sends: A is 1, B is 1, the head is 1."""
    sent = {"fedavg": 3, "ffa_lora": 2, "fedsa_lora": 1, "rolora": 3, "flora": 3, "head_only": 1}
    for name, numbers in sent.items():
        federation = federate(made(name, 0.1), ADAPTED, two_clients())
        assert federation.bytes_per_round.up == 2 * 4 * numbers, name


@pytest.mark.parametrize("name", ADAPTERS_ONLY)
def test_a_model_without_adapters_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} trains low-rank adapters, and this model has"):
        getattr(algorithms, name)(FEATURES)
