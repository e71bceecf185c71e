"""FedFomo, APPLE, FedCAC, pFedSim, kNN-Per: what clients take from others, by hand; see `hand`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import FEATURES, MODEL, after, body_loss, labelled, two_clients, window

from pflalign_jax import algorithms
from pflalign_jax.algorithms.fedcac import collaborators
from pflalign_jax.federated import Aggregate, Gathered, hold_out


def near(value):
    return pytest.approx(value, abs=1e-5)


def bodies(*values):
    return {"body": jnp.array(values), "head": jnp.zeros(len(values))}


def body(value):
    return {"body": jnp.array(value), "head": jnp.zeros(())}


def update_of(algorithm):
    return jax.jit(lambda *state: algorithm.client_update(*state, jax.random.key(0)))


def test_every_so_many_th_example_is_held_out():
    data = two_clients((2, 7))
    data = data._replace(x=np.arange(len(data.x), dtype=np.float32)[:, None])
    rest, held = hold_out(window(data, 1), 3)
    values = [w.x[w.start : w.start + w.size, 0].tolist() for w in (rest, held)]
    assert values == [[2, 3, 5, 6, 8], [4, 7]]
    rest, held = hold_out(window(data, 0), 3)
    assert (int(rest.size), int(held.size)) == (2, 0)


def test_fedfomo_moves_to_models_that_fit_better():
    """Client b, all of whose examples are 0, is at 1; losses ½ w²."""
    algorithm = algorithms.fedfomo(MODEL, 0.5, num_clients=4, held_out=3, loss=body_loss)
    models = bodies(0.5, 1.0, 3.0, -0.8)
    client = algorithm.init(body(1.0), None)[1]
    output = update_of(algorithm)(models, client, window(two_clients(), 1))
    # Gains per distance: (.5 - .125) / .5 and (.5 - .32) / 1.8; itself and the worse one get none.
    useful = np.array([0.375 / 0.5, 0.18 / 1.8])
    start = 1 + (useful / useful.sum()) @ [-0.5, -1.8]
    assert float(output.metrics["loss"].total) == near(2 * 0.5 * start**2)  # two are not held out
    assert float(output.params["body"]) == near(0.5 * start)
    assert float(output.state.params["body"]) == near(0.5 * start)
    assert float(output.message["body"]) == near(0.5 * start - 1)
    # A client with too few examples for one to be held out stays with itself.
    start = algorithm.personal_params(models, client, window(two_clients(), 0))
    assert float(start["body"]) == 1


def test_fedfomo_gives_no_weight_to_its_own_model():
    """The server's copy of client b's model is the sum of its moves: equal up to rounding."""
    algorithm = algorithms.fedfomo(MODEL, 0.5, num_clients=2, held_out=3, loss=body_loss)
    client = algorithm.init(body(1.0), None)[1]
    start = algorithm.personal_params(bodies(0.5, 1 - 1e-6), client, window(two_clients(), 1))
    assert float(start["body"]) == near(0.5)


@pytest.mark.slow
def test_fedfomo_without_neighbours_is_local_training_on_what_is_not_held_out():
    alone = two_clients((6,))
    algorithm = algorithms.fedfomo(MODEL, 0.25, num_clients=1, loss=body_loss)
    _, _, personal = after(algorithm, 2, alone)
    local = algorithms.local(MODEL, 0.25, loss=body_loss)
    assert float(personal[0]["body"]) == near(float(after(local, 2, alone)[2][0]["body"]))


def test_apple_learns_core_model_and_shares():
    """Two steps of client b, from the cores 2 and 1 and the shares (.5, .5), in round 5 of 20."""
    rate, share_rate, mu = 0.5, 0.2, 0.3
    algorithm = algorithms.apple(
        MODEL, rate, num_clients=2, share_learning_rate=share_rate, mu=mu, loss=body_loss,
        local_epochs=2,
    )  # fmt: skip
    server, client = algorithm.init(body(1.0), None)
    server = server._replace(cores=bodies(2.0, 1.0), rounds=jnp.int32(5))
    output = update_of(algorithm)(server, client, window(two_clients(), 1))
    core, p, pull = 1.0, np.array([0.5, 0.5]), mu * (1 + np.cos(np.pi / 4)) / 2
    for _ in range(2):
        g = p @ [2.0, core]  # the gradient of ½ w² at the personal model
        core, p = (
            core - rate * p[1] * g,
            p - share_rate * (g * np.array([2.0, core]) + pull * (p - 0.5)),
        )
    assert float(output.message["body"]) == near(core - 1)
    assert output.state.shares.tolist() == near(p.tolist())
    assert float(output.params["body"]) == near(p @ [2.0, core])
    # Who is not among the K learns its shares alone.
    new = window(two_clients(), 1)._replace(client_id=jnp.int32(7))
    output = update_of(algorithm)(server, client, new)
    assert float(output.params["body"]) == near(float(output.state.shares @ jnp.array([2.0, 1.0])))


@pytest.mark.slow
def test_apple_alone_and_with_fixed_shares_is_local_training():
    alone = two_clients((3,))
    algorithm = algorithms.apple(
        MODEL, 0.25, num_clients=1, share_learning_rate=0.0, loss=body_loss
    )
    _, _, personal = after(algorithm, 2, alone)
    local = algorithms.local(MODEL, 0.25, loss=body_loss)
    assert float(personal[0]["body"]) == near(float(after(local, 2, alone)[2][0]["body"]))


def test_fedcac_starts_at_and_sends_critical_parameters():
    """One step of client b; half of the kernel and half of the bias are critical."""
    algorithm = algorithms.fedcac(FEATURES, 0.1, num_clients=2, tau=0.5)
    w = FEATURES.init(None, None)
    server, client = algorithm.init(w, None)
    u = jax.tree.map(lambda a: a + 2, w)
    client = client._replace(
        critical={
            "body": jnp.zeros(()),
            "head": {"kernel": jnp.array([[0.0, 1.0]]), "bias": jnp.array([1.0, 0.0])},
        }
    )
    received = server._replace(customised=u)
    output = update_of(algorithm)(received, client, window(labelled(), 1))
    head = {"kernel": np.array([[1.0, 2.0]]), "bias": np.array([2.0, 0.0])}
    x, y = np.array([1.0, 3, 4]), np.eye(2)[[0, 0, 1]]
    logits = x[:, None] * head["kernel"] + head["bias"]
    slope = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - y
    moved = {
        "kernel": -0.1 * (slope * x[:, None]).mean(0, keepdims=True),
        "bias": -0.1 * slope.mean(0),
    }
    for name, delta in moved.items():
        after_step = head[name] + delta
        np.testing.assert_allclose(output.params["head"][name], after_step, atol=1e-5)
        importance = np.abs(delta * after_step)
        np.testing.assert_array_equal(
            output.state.critical["head"][name], importance == importance.max()
        )
    assert float(output.state.critical["body"]) == 0  # half of one parameter is none
    jax.tree.map(np.testing.assert_array_equal, output.message.critical, output.state.critical)


def test_fedcacs_collaborators_have_like_critical_parameters():
    critical = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.float32)
    present = np.array([True, True, True, False])
    join = jax.jit(lambda progress: collaborators({"a": critical}, present, progress))
    # Overlaps: 1/2 of 0 and 1, 1/2 of 1 and 2, none of 0 and 2; their mean is a third.
    thirds = [[1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0, 1 / 2, 1 / 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(join(0.5), thirds, atol=1e-6)
    np.testing.assert_allclose(join(1.01), np.eye(4), atol=1e-6)


@pytest.mark.slow
def test_fedcac_without_critical_parameters_is_fedavg():
    options = {"local_epochs": 2, "batch_size": 2}
    fedcac = algorithms.fedcac(FEATURES, 0.1, num_clients=2, tau=0.0, **options)
    found, _, _ = after(fedcac, 3, labelled(), FEATURES)
    expected, _, _ = after(algorithms.fedavg(FEATURES, 0.1, **options), 3, labelled(), FEATURES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, expected.params
    )


def test_pfedsim_averages_bodies_of_clients_with_like_heads():
    """Three clients of four answer, whose bodies were at 1 and heads at (1, 0)."""
    algorithm = algorithms.pfedsim(FEATURES, num_clients=4, warm_up_rounds=1)
    server, _ = algorithm.init(FEATURES.init(None, None), None)
    bodies = np.array([1.0, 2.0, 4.0])
    kernels = np.array([[[1.0, 1.0]], [[2.0, -1.0]], [[-1.0, 0.5]]])
    deltas = {
        "body": jnp.asarray(bodies - 1),
        "head": {"kernel": jnp.asarray(kernels - [[[1.0, 0.0]]]), "bias": jnp.zeros((3, 2))},
    }
    deltas = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), deltas)
    inbox = Gathered(deltas, jnp.array([1.0, 3.0, 0.0]), jnp.array([0, 1, -1], jnp.int32))
    update = jax.jit(algorithm.server_update)
    warm = update(server, Aggregate(inbox, jnp.float32(4)))
    assert warm.models["body"].tolist() == near([1.75] * 4)  # FedAvg's, for everybody
    assert not warm.likeness.any()
    start = {"body": jnp.ones(4), "head": {"kernel": jnp.ones((4, 1, 2)) * jnp.array([[[1.0, 0]]])}}
    server = warm._replace(models={**start, "head": {**start["head"], "bias": jnp.zeros((4, 2))}})
    inbox = inbox._replace(weights=jnp.array([1.0, 3.0, 2.0]), ids=jnp.array([0, 1, 2], jnp.int32))
    new = update(server, Aggregate(inbox, jnp.float32(6)))
    # One feature: cosines are the signs' products, means over two classes: 0, 0 and -1, cut to 0.
    signs = np.sign(kernels[:, 0])
    cosines = np.clip(signs @ signs.T / 2, 0, 1)
    np.testing.assert_allclose(new.likeness[:3, :3], cosines, atol=1e-6)
    assert not new.likeness[3].any()
    # Of clients 0 and 1, half alike, a mean that is mostly their own; 2 and 3 keep theirs.
    half = new._replace(likeness=jnp.zeros((4, 4)).at[0, 1].set(0.5).at[1, 0].set(0.5))
    received = algorithm.broadcast(half)
    own, other = -np.log(1e-4), -np.log(0.5)
    mixed = [(own + 2 * other), (2 * own + other)] / (own + other)
    assert received["body"].tolist() == near([*mixed, 4, 1])
    np.testing.assert_allclose(received["head"]["kernel"][:3], kernels, atol=1e-6)


def test_pfedsim_warms_up_as_fedavg():
    options = {"local_epochs": 2, "batch_size": 2}
    pfedsim = algorithms.pfedsim(FEATURES, 0.1, num_clients=2, warm_up_rounds=2, **options)
    _, _, found = after(pfedsim, 2, labelled(), FEATURES)
    _, _, expected = after(algorithms.fedavg(FEATURES, 0.1, **options), 2, labelled(), FEATURES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_knnper_mixes_the_model_with_the_labels_of_near_examples():
    """Client b remembers 1, 3 (label 0) and 4 (label 1); z = x."""
    lam, sigma = 0.6, 2.0
    algorithm = algorithms.knnper(FEATURES, 0.1, lam=lam, num_neighbours=2, sigma=sigma)
    params = FEATURES.init(None, None)
    server, _ = algorithm.init(params, None)
    memory = algorithm.personal_params(server, (), window(labelled(), 1))
    assert memory.features[memory.mask > 0].ravel().tolist() == [1, 3, 4]
    found = np.exp(algorithm.predict(memory, jnp.array([[4.5], [1.5]])))
    a, b = np.exp(-(0.5**2) / sigma), np.exp(-(1.5**2) / sigma)  # of 4 and 3; of 1 and 3
    votes = np.array([[b, a], [a + b, 0]]) / (a + b)
    model = 1 / (1 + np.exp(-np.array([[4.5, -4.5], [1.5, -1.5]])))
    np.testing.assert_allclose(found, lam * votes + (1 - lam) * model, atol=1e-5)
    # A client without examples has the model alone.
    nothing = algorithm.personal_params(
        server, (), window(labelled(), 1)._replace(size=jnp.int32(0))
    )
    np.testing.assert_allclose(
        np.exp(algorithm.predict(nothing, jnp.array([[4.5]]))), model[:1], atol=1e-6
    )


@pytest.mark.slow
def test_knnpers_models_are_fedavgs_and_so_are_its_predictions_without_neighbours():
    knnper = algorithms.knnper(FEATURES, 0.1, lam=0.0, local_epochs=2)
    server, _, memories = after(knnper, 2, labelled(), FEATURES)
    expected, _, _ = after(
        algorithms.fedavg(FEATURES, 0.1, local_epochs=2), 2, labelled(), FEATURES
    )
    jax.tree.map(np.testing.assert_array_equal, server.params, expected.params)
    x = jnp.array([[0.3], [-2.0]])
    found = knnper.predict(memories[1], x)
    np.testing.assert_allclose(
        found, jax.nn.log_softmax(FEATURES.apply(expected.params, x)), atol=1e-5
    )
