"""FedPAC, FedCP and GPFL: combined heads, gates and conditional inputs, by hand; see `hand`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import FEATURES, after, labelled, two_clients

from pflalign_jax import algorithms
from pflalign_jax.algorithms.fedcp import discrepancy
from pflalign_jax.algorithms.fedpac import combinations
from pflalign_jax.federated import federate


def near(value):
    return pytest.approx(value, abs=1e-5)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_combinations_solve_the_quadratic_program():
    # Client 0: minimise 1 a² + (2 + 1) b², a + b = 1; client 1: (1 + 1) a² + 2 b². 2 is absent.
    h, variance = np.array([[[0.0]], [[1.0]], [[5.0]]]), np.array([1.0, 2.0, 1.0])
    alpha = combinations(h, variance, np.array([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(alpha, [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-6)


def test_combinations_agree_with_a_general_solver():
    from scipy.optimize import minimize

    h, variance = np.random.default_rng(0).normal(size=(6, 2, 3)), np.linspace(0.01, 0.5, 6)
    points = h.reshape(6, -1)
    alpha = combinations(h, variance, np.ones(6))
    for i in range(6):
        q = np.diag(variance) + (points[i] - points) @ (points[i] - points).T
        best = minimize(
            lambda a, q=q: a @ q @ a,
            np.full(6, 1 / 6),
            method="SLSQP",
            bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(alpha[i], best.x, atol=2e-4)


def test_fedpac_combines_heads():
    algorithm = algorithms.fedpac(FEATURES, 0.5, num_classes=2, num_clients=2, head=("head",))
    server, _, personal = after(algorithm, 1, labelled(), FEATURES)
    # Heads after one step with the body at 1, where logits are (z, 0).
    head_a = 1 - 0.5 * 2 * sigmoid(2)
    slopes = [1 * (sigmoid(1) - 1), 3 * (sigmoid(3) - 1), 4 * sigmoid(4)]
    head_b = 1 - 0.5 * np.mean(slopes)
    # H_a = (0, 2), V_a = 0; H_b = (4, 4) / 3, V_b = (26 / 3 - 32 / 9) / 3, distance² 20 / 9.
    v_b = (26 / 3 - 32 / 9) / 3
    share = v_b / (v_b + 20 / 9)
    kernels = [float(p["head"]["kernel"][0, 0]) for p in personal]
    assert kernels == near([head_a, share * head_a + (1 - share) * head_b])
    assert float(personal[0]["body"]) == float(personal[1]["body"]) != 1
    # Centroids of the classes with each client's own new body.
    fixed = algorithms.fedpac(FEATURES, 0.0, num_classes=2, num_clients=2, head=("head",))
    server, _, _ = after(fixed, 1, labelled(), FEATURES)
    assert server.shared.mean.ravel().tolist() == near([2, 3])


def test_fedpac_aligns_features():
    def server(lam, rounds):
        algorithm = algorithms.fedpac(
            FEATURES, 0.1, num_classes=2, num_clients=2, head=("head",), lam=lam
        )
        return after(algorithm, rounds, labelled(), FEATURES)[0].shared

    first = server(1.0, 1)  # knew no centroid
    body, centroids = float(first.body["body"]), first.mean[:, 0]
    assert body == float(server(0.0, 1).body["body"])
    slope_a = 2 * (2 * body - centroids[1]) * 2
    slope_b = np.mean([2 * (x * body - centroids[y]) * x for x, y in ((1, 0), (3, 0), (4, 1))])
    pull = float(server(0.0, 2).body["body"] - server(1.0, 2).body["body"])
    assert pull == near(0.1 * float(slope_a + 3 * slope_b) / 4)


def test_a_client_downloads_its_own_head_only():
    data = labelled()
    algorithm = algorithms.fedpac(FEATURES, 0.1, num_classes=2, num_clients=2, head=("head",))
    _, down = federate(algorithm, FEATURES, data).bytes_per_round
    assert down == 2 * 4 * (1 + (2 + 2) + (2 + 2))  # body, head, centroids and which are known
    amp = algorithms.fedamp(FEATURES, 0.1, num_clients=2)
    assert federate(amp, FEATURES, data).bytes_per_round[1] == 2 * 4 * (1 + 2 + 2)


def test_discrepancy():
    a, b = jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[1.0], [1.0], [0.0]])
    mask = jnp.array([1.0, 1.0, 0.0])

    def k(distance):
        return sum(np.exp(-0.5 * distance / s) for s in (10, 15, 20, 50))

    expected = (2 * k(0) + 2 * k(4)) / 4 + k(0) - 2 * k(1)
    assert float(discrepancy(a, b, mask)) == near(expected)
    assert float(discrepancy(a, a, mask)) == near(0)


def test_fedcp_splits_features_between_two_heads():
    algorithm = algorithms.fedcp(FEATURES, 0.1)
    params = FEATURES.init(None, None)
    server, client = algorithm.init(params, jax.random.key(0))
    start = algorithm.personal_params(server, client, None)
    # One feature: the policy's two outputs, standardised, are 1 and -1; after relu 1 and 0.
    assert float(start.context[0]) == near(1)
    share = float(jax.nn.softmax(jnp.array([1.0, 0.0]))[0])
    first = float(start.policy["kernel"][0, 0]) > float(start.policy["kernel"][0, 1])
    share = share if first else 1 - share
    other = start._replace(head={"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.ones(2)})
    logits = algorithm.predict(other, jnp.array([[2.0]]))
    expected = [2 * share + 3 * 2 * (1 - share) + 1, 1]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-3)


def test_fedcp_sends_the_middle_of_both_heads():
    algorithm = algorithms.fedcp(FEATURES, 0.1, lam=0.0)
    server, clients, personal = after(algorithm, 1, labelled(), FEATURES)
    own = [c.head["kernel"] for c in clients]
    expected = (own[0] + 3 * own[1]) / 4 / 2 + jnp.array([[1.0, 0.0]]) / 2
    np.testing.assert_allclose(server.model["head"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(personal[0].model["head"]["kernel"], own[0])
    np.testing.assert_array_equal(personal[0].head["kernel"], server.model["head"]["kernel"])
    # The discrepancy is 0 where training starts: λ matters from the second step on only.
    pulled, _, _ = after(algorithms.fedcp(FEATURES, 0.1, lam=9.0), 1, labelled(), FEATURES)
    np.testing.assert_allclose(pulled.model["body"], server.model["body"], rtol=1e-5)


def alone():
    """Client a: one example x = 2 of label 1."""
    x, y = np.array([[2.0], [1.0]], np.float32), np.array([1, 0], np.int32)
    return two_clients((1,))._replace(x=x, y=y)


def test_fedcps_steps(monkeypatch):
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.zeros(shape))
    rate, p = 0.1, sigmoid(2)
    start = algorithms.fedcp(FEATURES, rate).init(FEATURES.init(None, None), jax.random.key(0))[0]
    larger = jax.nn.softmax(jnp.array([1.0, 0.0]))
    share = float(larger[0] if start.policy["kernel"][0, 0] > start.policy["kernel"][0, 1]
                  else larger[1])  # fmt: skip
    # Both heads are (1, 0), so that logits are (2, 0): slopes p and -p.
    server, clients, _ = after(algorithms.fedcp(FEATURES, rate), 1, alone(), FEATURES)
    moved = rate * p * share * 2
    np.testing.assert_allclose(clients[0].head["kernel"], [[1 - moved, moved]], rtol=1e-4)
    np.testing.assert_allclose(clients[0].head["bias"], [-rate * p, rate * p], rtol=1e-4)
    assert float(server.model["body"]) == near(1 - rate * 2 * p)
    np.testing.assert_allclose(
        server.model["head"]["kernel"], [[1 - moved / 2, moved / 2]], rtol=1e-4
    )

    # The discrepancy's slope at the second step: features are d = -4 η p from where they were.
    def body(lam):
        twice = algorithms.fedcp(FEATURES, rate, lam=lam, local_epochs=2)
        return float(after(twice, 1, alone(), FEATURES)[0].model["body"])

    d = -2 * rate * 2 * p
    slope = 2 * sum(np.exp(-0.5 * d * d / s) * d / s for s in (10, 15, 20, 50)) * 2
    assert body(0.0) - body(3.0) == pytest.approx(rate * 3.0 * slope, rel=1e-3)


def test_gpfl():
    # One feature: the valve's normalised outputs are 0 and the cosines ±1, without gradients.
    lam, mu, rate = 0.5, 0.25, 0.1
    algorithm = algorithms.gpfl(FEATURES, rate, num_classes=2, lam=lam, mu=mu)
    first, _ = algorithm.init(FEATURES.init(None, None), jax.random.key(0))
    server, clients, personal = after(algorithm, 1, labelled(), FEATURES)
    classes = first.classes[:, 0]
    np.testing.assert_allclose(server.classes, first.classes * (1 - rate * mu), rtol=1e-5)
    # a: z = 2, logits (2, 0), label 1; the norm's slope is the sign of z - e_1.
    p, sign = sigmoid(2), np.sign(2 - float(classes[1]))
    server_a, _, _ = after(algorithm, 1, alone(), FEATURES)
    assert float(server_a.body["body"]) == near(1 - rate * (2 * p + lam * 2 * sign))
    assert [c.shares.tolist() for c in clients] == [near([0, 1]), near([2 / 3, 1 / 3])]
    condition = clients[1].shares @ server.classes
    np.testing.assert_allclose(personal[1].condition, condition, rtol=1e-6)
    logits = algorithm.predict(personal[0], jnp.array([[-1.0]]))  # relu(-body) = 0
    np.testing.assert_allclose(logits[0], clients[0].head["bias"], rtol=1e-6)
