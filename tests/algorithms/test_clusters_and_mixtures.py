"""CFL, FeSEM and FedEM: several models on the server, by hand; see `hand`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import FEATURES, MODEL, after, body_loss, labelled, window

from pflalign_jax import algorithms
from pflalign_jax.algorithms.averaging import ServerState
from pflalign_jax.algorithms.cfl import bipartition
from pflalign_jax.algorithms.fedem import Mixture
from pflalign_jax.algorithms.fesem import ServerState as Centres
from pflalign_jax.federated import Aggregate, Gathered


def near(value):
    return pytest.approx(value, abs=1e-5)


def test_cfl_cuts_a_cluster_whose_updates_disagree():
    """They are .5 and -.5, their mean -.25: after a round as FedAvg's everybody is alone."""
    thresholds = {"eps1": 0.3, "eps2": 0.4}
    algorithm = algorithms.cfl(MODEL, 0.5, num_clients=2, loss=body_loss, **thresholds)
    server, _, personal = after(algorithm, 2)
    assert server.cluster.tolist() == [0, 1]
    # From .75: half of the way to 2 and to 0.
    assert [float(p["body"]) for p in personal] == near([1.375, 0.375])
    assert server.models["body"].tolist() == near([1.375, 0.375, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"num_clusters": 1}, {"eps1": 0.2, "eps2": 0.4}, {"eps1": 0.3, "eps2": 0.6}]
)
def test_cfl_keeps_a_cluster_that_still_moves_or_in_which_all_are_content(options):
    thresholds = {"eps1": 0.3, "eps2": 0.4} | options
    algorithm = algorithms.cfl(MODEL, 0.5, num_clients=2, loss=body_loss, **thresholds)
    server, _, personal = after(algorithm, 1)
    assert server.cluster.tolist() == [0, 0]
    assert [float(p["body"]) for p in personal] == near([0.75, 0.75])  # FedAvg's


def test_a_bipartition_has_the_least_cosines_across():
    def at(*degrees):
        angles = np.radians(degrees)
        lengths = np.arange(1.0, len(degrees) + 1)[:, None]
        return lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    assert bipartition(at(0, 90, 10, 80)).tolist() == [False, True, False, True]
    # A chain of neighbours stays together, though its ends are far from each other.
    assert bipartition(at(0, 30, 60, 90, 180)).tolist() == [False] * 4 + [True]
    assert bipartition(np.zeros((3, 2))).dtype == bool  # nobody has answered


def test_fesem_moves_clients_and_centres_as_k_means_does():
    """Of five clients four answer; means count by examples."""
    algorithm = algorithms.fesem(MODEL, num_clients=5, num_clusters=3)
    centres = {"body": jnp.array([9.0, 9.0, 7.0]), "head": jnp.zeros(3)}
    state = Centres(centres, jnp.array([0, 1, 0, 1, 2], jnp.int32))
    # Their models are at 1, .2, 0 and 1.1, and have come from 9.
    messages = {"body": jnp.array([-8.0, -8.8, -9.0, 0.0, -7.9]), "head": jnp.zeros(5)}
    inbox = Gathered(
        messages,
        weights=jnp.array([1.0, 3.0, 1.0, 0.0, 1.0]),
        ids=jnp.array([2, 1, 0, -1, 3], jnp.int32),
    )
    server = jax.jit(algorithm.server_update)(state, Aggregate(inbox, jnp.float32(6)))
    # Means .5 of clients 0 and 2, (.6 + 1.1) / 4 of 1 and 3: 0 and 1 are nearer to the second.
    assert server.nearest.tolist() == [1, 1, 0, 0, 2]
    assert server.centres["body"].tolist() == near([1.05, 0.15, 7])


@pytest.mark.parametrize("num_clusters, expected", [(1, [0.625, 0.625]), (2, [1.75, 0.25])])
def test_fesem_with_one_centre_is_fedavg_and_with_one_for_each_local(num_clusters, expected):
    algorithm = algorithms.fesem(
        MODEL, 0.5, num_clients=2, num_clusters=num_clusters, loss=body_loss
    )
    _, _, personal = after(algorithm, 2)
    assert [float(p["body"]) for p in personal] == near(expected)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


MODELS = {
    "body": jnp.array([1.0, -0.5]),
    "head": {"kernel": jnp.array([[[1.0, 0.0]], [[0.5, 1.0]]]), "bias": jnp.zeros((2, 2))},
}


def test_fedems_models_learn_what_they_are_responsible_for():
    """One step on client b's three examples."""
    rate, weights = 0.3, np.array([0.25, 0.75])
    algorithm = algorithms.fedem(FEATURES, rate, num_models=2)
    _, state = algorithm.init(FEATURES.init(None, None), jax.random.key(0))
    state = state._replace(weights=jnp.asarray(weights, jnp.float32))
    update = jax.jit(algorithm.client_update)
    output = update(ServerState(MODELS), state, window(labelled(), 1), jax.random.key(0))
    x, y = np.array([1.0, 3, 4]), np.array([0, 0, 1])
    body = np.asarray(MODELS["body"])[:, None, None]
    kernel = np.asarray(MODELS["head"]["kernel"])
    log_p = log_softmax(body * x[None, :, None] * kernel)
    q = weights[:, None] * np.exp(log_p[:, np.arange(3), y])
    q /= q.sum(0)
    slope = (np.exp(log_p) - np.eye(2)[y]) * q[..., None]
    np.testing.assert_allclose(output.state.weights, q.mean(1), atol=1e-6)
    moved = -rate * (slope * kernel * x[None, :, None]).sum(-1).mean(-1)
    np.testing.assert_allclose(output.message["body"], moved, atol=1e-5)
    moved = -rate * slope.mean(1)
    np.testing.assert_allclose(output.message["head"]["bias"], moved, atol=1e-5)
    # The mixture of probabilities, not of logits.
    mixture = Mixture(MODELS, state.weights)
    found = algorithm.predict(mixture, jnp.asarray(x[:, None], jnp.float32))
    expected = np.log((weights[:, None, None] * np.exp(log_p)).sum(0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_fedem_with_one_model_is_fedavg():
    data, options = labelled(), {"local_epochs": 2, "batch_size": 2}
    _, _, mixtures = after(
        algorithms.fedem(FEATURES, 0.1, num_models=1, **options), 2, data, FEATURES
    )
    _, _, models = after(algorithms.fedavg(FEATURES, 0.1, **options), 2, data, FEATURES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), mixtures[0].models, models[0]
    )
    assert mixtures[0].weights.tolist() == [1.0]


@pytest.mark.slow
def test_a_new_client_of_fedem_takes_its_weights_from_its_own_examples():
    algorithm = algorithms.fedem(FEATURES, 0.1, num_models=2)
    server, new = ServerState(MODELS), window(labelled(), 1)
    _, first = algorithm.init(FEATURES.init(None, None), jax.random.key(0))
    trained = algorithm.client_update(server, first, new, jax.random.key(0)).state
    np.testing.assert_allclose(algorithm.newcomer(server, new).weights, trained.weights, atol=1e-6)
    nothing = algorithm.newcomer(server, new._replace(size=jnp.int32(0)))
    assert nothing.weights.tolist() == [0.5, 0.5]
