"""FedAS and FedGH: bodies that are aligned, heads that the server trains, by hand; see `hand`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import FEATURES, after, labelled, window

from pflalign_jax import algorithms
from pflalign_jax.algorithms.partly_local import ServerState
from pflalign_jax.federated import Aggregate, Gathered

X, Y = np.array([1.0, 3, 4]), np.eye(2)[[0, 0, 1]]
"""Client b's examples, and their labels one-hot."""


def near(value):
    return pytest.approx(value, rel=1e-4, abs=1e-5)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def gradient(body, kernel, bias):
    """Return the gradient of the mean cross-entropy of b's examples."""
    z = body * X
    slope = softmax(z[:, None] * kernel + bias) - Y
    of_kernel = (slope * z[:, None]).mean(0)
    return (slope @ kernel * X).mean(), of_kernel, slope.mean(0)


def update_of(algorithm):
    return jax.jit(lambda *state: algorithm.client_update(*state, jax.random.key(0)))


def test_fedas_aligns_the_received_body_and_weights_by_fisher_information():
    rate, align_rate = 0.1, 0.02
    algorithm = algorithms.fedas(FEATURES, rate, num_classes=2, align_learning_rate=align_rate)
    server, client = algorithm.init(FEATURES.init(None, None), None)
    last = {**client.body, "body": jnp.array(2.0)}
    client = client._replace(body=last, trained=jnp.ones(()))
    output = update_of(algorithm)(server, client, window(labelled(), 1))
    # Mean features of the last body, 2 x: 4 of label 0, 8 of label 1.
    body = 1 - align_rate * np.mean(2 * (X - np.array([4, 4, 8])) * X)
    kernel, bias = np.array([1.0, 0]), np.zeros(2)
    g = gradient(body, kernel, bias)
    trained = body - rate * g[0], kernel - rate * g[1], bias - rate * g[2]
    assert float(output.params["body"]) == float(output.state.body["body"]) == near(trained[0])
    np.testing.assert_allclose(output.state.own["head"]["kernel"][0], trained[1], atol=1e-5)
    # All three examples are one batch of ten at most: three tenths of a batch.
    trace = sum(np.sum(np.square(part)) for part in gradient(*trained)) * 3 / 10
    moved, told = output.message
    assert float(told) == near(trace)
    assert float(moved["body"]) == near(trace * (trained[0] - 1))
    # Means over clients: who has three times the trace counts three times.
    mean = {**moved, "body": (1 * 0.4 + 3 * 0.8) / 2}, jnp.float32(4 / 2)
    new = algorithm.server_update(server, Aggregate(mean, jnp.float32(2)))
    assert float(new.shared["body"]) == near(1.7)


@pytest.mark.slow
def test_fedas_in_a_first_round_trains_as_fedper_does():
    options = {"local_epochs": 2, "batch_size": 2}
    fedas = algorithms.fedas(FEATURES, 0.1, num_classes=2, align_learning_rate=5.0, **options)
    _, clients, _ = after(fedas, 1, labelled(), FEATURES)
    assert [float(c.trained) for c in clients] == [1, 1]
    data, key = window(labelled(), 0), jax.random.key(0)
    found = fedas.client_update(*fedas.init(FEATURES.init(None, None), None), data, key).params
    fedper = algorithms.fedper(FEATURES, 0.1, **options)
    expected = fedper.client_update(*fedper.init(FEATURES.init(None, None), None), data, key).params
    # Client a has one example: the order of its batches does not depend on keys.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_fedgh_sends_mean_features_from_which_the_server_learns_a_head():
    algorithm = algorithms.fedgh(FEATURES, 0.1, num_classes=2, server_learning_rate=0.5)
    server, client = algorithm.init(FEATURES.init(None, None), None)
    output = update_of(algorithm)(server, client, window(labelled(), 1))
    body = 1 - 0.1 * gradient(1.0, np.array([1.0, 0]), np.zeros(2))[0]
    assert float(output.state.own["body"]) == near(body)
    means, known = output.message
    assert means[:, 0].tolist() == near([2 * body, 4 * body]) and known.tolist() == [1, 1]
    # Clients 0 and 1, in this order, whatever the order of the messages; the third is padding.
    inbox = Gathered(
        (jnp.array([[[2.0], [4.0]], [[3.0], [9.0]], [[0.0], [0.0]]]),
         jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])),
        weights=jnp.array([3.0, 1.0, 0.0]), ids=jnp.array([1, 0, -1], jnp.int32),
    )  # fmt: skip
    new = jax.jit(algorithm.server_update)(server, Aggregate(inbox, jnp.float32(4)))
    kernel, bias = np.array([[1.0, 0.0]]), np.zeros(2)
    for z, y in (([[3.0]], [0]), ([[2.0], [4.0]], [0, 1])):
        z, slope = np.array(z), softmax(np.array(z) @ kernel + bias) - np.eye(2)[y]
        kernel, bias = kernel - 0.5 * z.T @ slope / len(z), bias - 0.5 * slope.mean(0)
    np.testing.assert_allclose(new.shared["head"]["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(new.shared["head"]["bias"], bias, atol=1e-5)


def test_fedgh_with_a_server_that_does_not_learn_is_local_training_under_the_first_head():
    fedgh = algorithms.fedgh(FEATURES, 0.1, num_classes=2, server_learning_rate=0.0)
    server, clients, _ = after(fedgh, 1, labelled(), FEATURES)
    _, _, local = after(algorithms.local(FEATURES, 0.1), 1, labelled(), FEATURES)
    assert [float(c.own["body"]) for c in clients] == near([float(p["body"]) for p in local])
    assert isinstance(server, ServerState)
    first = FEATURES.init(None, None)["head"]
    jax.tree.map(np.testing.assert_array_equal, server.shared["head"], first)
