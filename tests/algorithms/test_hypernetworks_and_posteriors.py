"""pFedHN and pFedBayes: models that are made, and drawn, by hand; see `hand`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import MODEL, after, body_loss, two_clients, window

from pflalign_jax import algorithms
from pflalign_jax.algorithms.averaging import ServerState
from pflalign_jax.algorithms.pfedbayes import Gaussian, divergence
from pflalign_jax.algorithms.pfedhn import ServerState as Hypernetwork
from pflalign_jax.federated import Aggregate, Gathered


def near(value):
    return pytest.approx(value, abs=1e-5)


def params(body, head):
    return {"body": jnp.asarray(body, jnp.float32), "head": jnp.asarray(head, jnp.float32)}


def test_pfedhn_goes_back_through_the_hypernetwork():
    """One hidden layer of two units; client 0 and 2 of three answer."""
    rate = 0.2
    algorithm = algorithms.pfedhn(
        MODEL, num_clients=3, embedding_size=1, hidden_size=2, hidden_layers=1,
        server_learning_rate=rate,
    )  # fmt: skip
    first, bias = np.array([[0.5, -1.0]]), np.array([0.1, 0.2])
    kernel, last = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([1.0, 0.0])
    layers = (
        {"kernel": jnp.asarray(first, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)},
        {"kernel": params(kernel[:, 0], kernel[:, 1]), "bias": params(*last)},
    )
    server = Hypernetwork(layers, jnp.array([[1.0], [5.0], [-0.4]]))
    deltas = np.array([[0.3, -0.1], [-0.2, 0.4]])
    inbox = Gathered(
        params([0.3, 0.0, -0.2], [-0.1, 0.0, 0.4]),
        weights=jnp.array([1.0, 0.0, 7.0]), ids=jnp.array([0, -1, 2], jnp.int32),
    )  # fmt: skip
    new = jax.jit(algorithm.server_update)(server, Aggregate(inbox, jnp.float32(8)))
    # Row by row: e, then z = relu(e W + b), then z K + c; clients count equally.
    e = np.array([[1.0], [-0.4]])
    before = e @ first + bias
    z = np.maximum(before, 0)
    back = deltas @ kernel.T * (before > 0)
    assert (before > 0).tolist() == [[True, False], [False, True]]
    found = new.layers[1]
    np.testing.assert_allclose(
        found["bias"]["body"], last[0] + rate * deltas[:, 0].mean(), atol=1e-6
    )
    expected = kernel + rate * z.T @ deltas / 2
    np.testing.assert_allclose(found["kernel"]["head"], expected[:, 1], atol=1e-6)
    np.testing.assert_allclose(new.layers[0]["kernel"], first + rate * e.T @ back / 2, atol=1e-6)
    moved = e + rate * back @ first.T
    np.testing.assert_allclose(new.embeddings, [moved[0], [5.0], moved[1]], atol=1e-6)
    # What a client downloads is its model alone; a new client's is of the mean embedding.
    z = np.maximum(e[1] @ first + bias, 0)
    assert float(algorithm.deliver(server, jnp.int32(2))["head"]) == near((z @ kernel + last)[1])
    z = np.maximum(5.6 / 3 * first[0] + bias, 0)
    assert float(algorithm.deliver(server, jnp.int32(3))["body"]) == near((z @ kernel + last)[0])


def test_pfedhns_first_round_moves_the_models_common_part_as_fedavg():
    """From the same model, by half of (2 - 1) and of (0 - 1): the mean of clients is 0."""
    algorithm = algorithms.pfedhn(
        MODEL, 0.5, num_clients=2, server_learning_rate=0.2, loss=body_loss
    )
    server, _, personal = after(algorithm, 1)
    assert float(server.layers[-1]["bias"]["body"]) == near(1.0)
    # What is not common draws them apart, to 2 and to 0: the hidden layers have not moved yet.
    assert float(personal[0]["body"]) > float(personal[1]["body"])


def softplus(rho):
    return np.log1p(np.exp(rho))


def kl(q_mean, q_rho, p_mean, p_rho):
    """Return the divergence of two Gaussians."""
    q, p = softplus(q_rho), softplus(p_rho)
    return np.log(p / q) + (q**2 + (q_mean - p_mean) ** 2) / (2 * p**2) - 0.5


def slope(function, at, eps=1e-5):
    return (function(at + eps) - function(at - eps)) / (2 * eps)


def test_pfedbayes_learns_a_posterior_around_a_shared_prior():
    """The loss is 3 body: the gradient of its mean whatever is drawn, and none of the head's."""
    rate, personal_rate, zeta = 0.02, 0.05, 0.6
    algorithm = algorithms.pfedbayes(
        MODEL, rate, personal_learning_rate=personal_rate, zeta=zeta,
        loss=lambda params, batch, key: 3.0 * params["body"],
    )  # fmt: skip
    shared = Gaussian(params(1.0, 0.5), params(-1.0, -0.5))
    own = Gaussian(params(0.8, 0.1), params(-1.5, 0.2))
    state = algorithm.init(params(1.0, 0.0), None)[1]._replace(own=own)
    update = jax.jit(algorithm.client_update)
    output = update(ServerState(shared), state, window(two_clients(), 1), jax.random.key(0))
    weight = zeta / 3  # three examples
    head = [0.1, 0.2, 0.5, -0.5]
    body = [0.8, -1.5, 1.0, -1.0]

    def gradient(values, i):
        return weight * slope(lambda v: kl(*values[:i], v, *values[i + 1 :]), values[i])

    new = output.state.own
    assert float(output.params["body"]) == float(new.mean["body"])
    assert float(new.mean["body"]) == near(0.8 - personal_rate * (3 + gradient(body, 0)))
    assert float(new.mean["head"]) == near(0.1 - personal_rate * gradient(head, 0))
    assert float(new.rho["head"]) == near(0.2 - personal_rate * gradient(head, 1))
    moved = output.message
    assert float(moved.mean["body"]) == near(-rate * gradient(body, 2))
    assert float(moved.rho["head"]) == near(-rate * gradient(head, 3))
    # The loss that is told is the free energy, at a draw of the body.
    deviation = (
        float(output.metrics["loss"].total) / 3 - weight * (kl(*head) + kl(*body))
    ) / 3 - 0.8
    assert 0 < abs(deviation) < 4 * softplus(-1.5)
    assert float(divergence(own, shared)) == near(kl(*head) + kl(*body))


def test_pfedbayes_without_prior_and_deviation_is_local_training():
    algorithm = algorithms.pfedbayes(
        MODEL, 0.1, personal_learning_rate=0.5, zeta=0.0, first_rho=-12.0, loss=body_loss
    )
    server, _, personal = after(algorithm, 2)
    assert [float(p["body"]) for p in personal] == pytest.approx([1.75, 0.25], abs=1e-4)
    assert float(server.params.mean["body"]) == 1
