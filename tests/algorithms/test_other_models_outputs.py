"""Methods whose loss looks at another model's outputs, by hand; see `hand`.

Each client's round is one step on one or three examples, computed again in numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import FEATURES, MODEL, after, labelled, two_clients, window

from pflalign_jax import algorithms
from pflalign_jax.algorithms.averaging import ServerState
from pflalign_jax.models import Model


def near(value):
    return pytest.approx(value, abs=1e-5)


def step(algorithm, received, client, data, k=0):
    """Return the output of a client's round."""
    update = jax.jit(algorithm.client_update)
    return update(received, client, window(data, k), jax.random.key(0))


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


PLANE = Model(
    init=None,
    apply=lambda p, x: x @ p["body"] @ p["head"]["kernel"] + p["head"]["bias"][None],
    head=("head",),
    features=lambda p, x: x @ p["body"],
)
"""Two features of two inputs, a matrix, and three logits."""


def plane(*body):
    head = {"kernel": jnp.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]), "bias": jnp.zeros(3)}
    return {"body": jnp.array(body), "head": head}


def plane_data():
    """Return the two clients with two inputs and three labels."""
    data = labelled()
    x = np.array([[1.0, 2.0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0]], np.float32)
    return data._replace(x=x, y=np.array([1, 0, 2, 1, 0, 0], np.int32), num_classes=3)


def test_moon_draws_features_to_the_global_model_and_away_from_the_last():
    mu, tau, rate = 2.0, 0.5, 0.1
    w, last = plane([1.0, 0.0], [0.0, 1.0]), plane([0.0, 1.0], [1.0, 1.0])
    algorithm = algorithms.moon(
        PLANE, rate, mu=mu, tau=tau, loss=lambda params, batch, key: jnp.zeros(())
    )
    state = algorithm.init(w, jax.random.key(0))[1]._replace(last=last)
    output = step(algorithm, ServerState(w), state, plane_data())
    x = np.array([1.0, 2.0])
    z, v = x @ np.asarray(w["body"]), x @ np.asarray(last["body"])
    cosine = z @ v / np.linalg.norm(z) / np.linalg.norm(v)
    # The cosine with the received features, which z is at first, is at its maximum.
    slope = v / np.linalg.norm(z) / np.linalg.norm(v) - cosine * z / (z @ z)
    share = 1 / (1 + np.exp((1 - cosine) / tau))
    expected = -rate * mu / tau * share * np.outer(x, slope)
    np.testing.assert_allclose(output.message["body"], expected, atol=1e-5)
    assert float(output.metrics["loss"].total) == near(mu * np.log1p(np.exp((cosine - 1) / tau)))
    np.testing.assert_allclose(output.state.last["body"], output.params["body"])


def test_moon_in_a_first_round_is_fedavg():
    """Its last model is then the received one, whose features are those of the first step."""
    w, data = plane([1.0, 0.5], [-0.5, 1.0]), plane_data()
    moon = algorithms.moon(PLANE, 0.1, mu=5.0)
    found = step(moon, *moon.init(w, jax.random.key(0)), data, 1).message
    fedavg = algorithms.fedavg(PLANE, 0.1)
    expected = step(fedavg, *fedavg.init(w, jax.random.key(0)), data, 1).message
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_fedntd_keeps_what_the_received_model_says_of_wrong_classes():
    """In the second of two steps, as in the first the two models are the same."""
    beta, tau, rate = 3.0, 2.0, 0.2
    w, x = plane([1.0, 0.0], [0.0, 1.0]), np.array([1.0, 2.0])
    algorithm = algorithms.fedntd(PLANE, rate, beta=beta, tau=tau, local_epochs=2)
    output = step(algorithm, *algorithm.init(w, jax.random.key(0)), plane_data())
    bias, kept = np.zeros(3), x @ np.asarray(w["body"] @ w["head"]["kernel"])
    body, kernel = np.asarray(w["body"]), np.asarray(w["head"]["kernel"])
    for _ in range(2):
        z = x @ body
        logits = z @ kernel + bias
        slope = softmax(logits) - np.eye(3)[1]
        wrong = softmax(logits[[0, 2]] / tau) - softmax(kept[[0, 2]] / tau)
        slope[[0, 2]] += beta * tau * wrong
        body, kernel = body - rate * np.outer(x, kernel @ slope), kernel - rate * np.outer(z, slope)
        bias = bias - rate * slope
    np.testing.assert_allclose(output.params["body"], body, atol=1e-5)
    np.testing.assert_allclose(output.params["head"]["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(output.params["head"]["bias"], bias, atol=1e-5)


def test_fedntd_with_two_classes_is_fedavg():
    params = FEATURES.init(None, None)
    ntd, fedavg = (
        algorithms.fedntd(FEATURES, local_epochs=2),
        algorithms.fedavg(FEATURES, local_epochs=2),
    )
    found, expected = (
        step(a, *a.init(params, jax.random.key(0)), labelled(), 1).message for a in (ntd, fedavg)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def two_models():
    """Return two models of `FEATURES`."""
    first = FEATURES.init(None, None)
    other = {
        "body": jnp.array(-0.5),
        "head": {"kernel": jnp.array([[0.5, 1.0]]), "bias": jnp.array([0.2, 0.0])},
    }
    return first, other


def test_fmls_models_teach_each_other():
    rate, alpha, beta = 0.3, 0.25, 0.6
    shared, own = two_models()
    algorithm = algorithms.fml(FEATURES, rate, alpha=alpha, beta=beta)
    state = algorithm.init(shared, None)[1]._replace(own=own)
    output = step(algorithm, ServerState(shared), state, labelled(), 1)
    x, y = np.array([1.0, 3, 4]), np.eye(2)[[0, 0, 1]]

    def probabilities(params):
        kernel, bias = (np.asarray(params["head"][name]) for name in ("kernel", "bias"))
        return softmax(float(params["body"]) * x[:, None] * kernel + bias)

    p, q = probabilities(shared), probabilities(own)
    slopes = beta * (p - y) + (1 - beta) * (p - q), alpha * (q - y) + (1 - alpha) * (q - p)
    moved = output.message, jax.tree.map(lambda a, b: a - b, output.params, own)
    for slope, found, start in zip(slopes, moved, (shared, own), strict=True):
        np.testing.assert_allclose(found["head"]["bias"], -rate * slope.mean(0), atol=1e-5)
        body = (slope * np.asarray(start["head"]["kernel"]) * x[:, None]).sum(1).mean()
        assert float(found["body"]) == near(-rate * body)


@pytest.mark.slow
def test_fml_that_heeds_labels_alone_is_local_training_beside_fedavg():
    options = {"local_epochs": 2, "batch_size": 2}
    fml = algorithms.fml(FEATURES, 0.1, alpha=1.0, beta=1.0, **options)
    server, _, personal = after(fml, 2, labelled(), FEATURES)
    fedavg, local = (
        after(getattr(algorithms, name)(FEATURES, 0.1, **options), 2, labelled(), FEATURES)
        for name in ("fedavg", "local")
    )
    for found, expected in ((server.params, fedavg[0].params), (personal, local[2])):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_fedphps_inherited_model_teaches_features_and_takes_in_the_new_one():
    rate, lam, mu = 0.5, 0.4, 0.8
    w, inherited = two_models()
    algorithm = algorithms.fedphp(
        FEATURES, rate, lam=lam, mu=mu, momentum_rounds=100,
        loss=lambda params, batch, key: 3.0 * params["head"]["bias"][0],
    )  # fmt: skip
    state = algorithm.init(inherited, None)[1]._replace(rounds=jnp.int32(50))
    output = step(algorithm, ServerState(w), state, labelled(), 1)
    x = np.array([1.0, 3, 4])

    def discrepancy(body):
        def kernel(a, b):
            squares = (a[:, None] - b[None]) ** 2
            return sum(np.exp(-0.5 * squares / width) for width in (10, 15, 20, 50)).mean()

        z, h = body * x, -0.5 * x
        return kernel(z, z) + kernel(h, h) - 2 * kernel(z, h)

    slope = (discrepancy(1 + 1e-4) - discrepancy(1 - 1e-4)) / 2e-4
    assert float(output.message["body"]) == near(-rate * lam * slope)
    assert float(output.message["head"]["bias"][0]) == near(-rate * (1 - lam) * 3)
    kept = mu * 50 / 100
    expected = kept * -0.5 + (1 - kept) * (1 - rate * lam * slope)
    assert float(output.params["body"]) == float(output.state.params["body"]) == near(expected)
    assert int(output.state.rounds) == 51


@pytest.mark.slow
def test_fedphp_without_lessons_is_fedavg_with_the_last_local_model_for_its_own():
    options = {"local_epochs": 2, "batch_size": 2}
    fedphp = algorithms.fedphp(FEATURES, 0.1, lam=0.0, mu=0.0, **options)
    server, clients, _ = after(fedphp, 2, labelled(), FEATURES)
    expected, _, _ = after(algorithms.fedavg(FEATURES, 0.1, **options), 2, labelled(), FEATURES)
    found = server.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected.params)
    assert [int(c.rounds) for c in clients] == [2, 2]


def test_superfed_pulls_one_model_back_and_turns_both_away_from_each_other():
    """Two steps without a loss of the data, in the plane of body and head."""
    rate, mu, nu = 0.1, 0.5, 2.0
    algorithm = algorithms.superfed(
        MODEL, rate, mu=mu, nu=nu, local_epochs=2, loss=lambda params, batch, key: jnp.zeros(())
    )
    first = np.array([2.0, 1.0])
    w, v = first, np.array([1.0, 0.0])
    as_params = lambda a: {"body": jnp.float32(a[0]), "head": jnp.float32(a[1])}  # noqa: E731
    state = algorithm.init(as_params(w), jax.random.key(0))[1]._replace(own=as_params(v))
    output = step(algorithm, ServerState(as_params(w)), state, two_clients())
    for _ in range(2):
        lengths, product = (w @ w) * (v @ v), w @ v
        of_w = 2 * product / lengths * (v - product / (w @ w) * w)
        of_v = 2 * product / lengths * (w - product / (v @ v) * v)
        w, v = w - rate * (2 * mu * (w - first) + nu * of_w), v - rate * nu * of_v
    assert [float(output.message[name]) for name in ("body", "head")] == near(list(w - first))
    own = output.state.own
    assert [float(own["body"]), float(own["head"])] == near(list(v))
    assert float(output.params["body"]) == near((w[0] + v[0]) / 2)


def test_superfeds_middle_of_two_models_that_are_one_takes_half_of_local_trainings_step():
    """Whatever share is drawn; nothing pulls yet, and the angle of equal models has no slope."""
    params, data = FEATURES.init(None, None), labelled()
    superfed, local = algorithms.superfed(FEATURES, 0.1), algorithms.local(FEATURES, 0.05)
    server, client = superfed.init(params, jax.random.key(0))
    found = step(superfed, server, client._replace(own=params), data, 1)
    expected = step(local, *local.init(params, jax.random.key(0)), data, 1).params
    assert not np.allclose(found.message["body"], found.state.own["body"] - params["body"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.params, expected)


@pytest.mark.slow
def test_superfeds_models_share_a_gradient_in_the_shares_of_their_mixture():
    algorithm = algorithms.superfed(
        MODEL, 0.1, mu=0.0, nu=0.0, loss=lambda params, batch, key: 3.0 * params["body"]
    )
    first = MODEL.init(None, None)
    output = step(algorithm, *algorithm.init(first, jax.random.key(0)), two_clients())
    moved = float(output.message["body"]), float(output.state.own["body"]) - 1.0
    assert sum(moved) == near(-0.1 * 3)
    assert all(-0.3 < part < 0 for part in moved)
