"""Every baseline's rounds, worked out by hand; see `hand`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hand import FEATURES, MODEL, after, body_loss, floats, labelled, loss, two_clients

from pflalign_jax import algorithms, align_transform, new_round
from pflalign_jax.datasets import digits
from pflalign_jax.federated import ClientData, federate, participation
from pflalign_jax.models import mlp

HEAD = {"head": ("head",)}


def near(value):
    return pytest.approx(value, abs=1e-6)


def first_of(algorithm):
    """Return the first states of server and client."""
    return algorithm.init({"body": jnp.ones(()), "head": jnp.zeros(())}, jax.random.key(0))


def window():
    """Return client a's data."""
    data = two_clients()
    return ClientData(
        *(jnp.asarray(data.x), jnp.asarray(data.y), jnp.int32(0), jnp.int32(1)),
        *(jnp.arange(3, dtype=jnp.int32), jnp.float32(0), jnp.float32(1)),
    )


def test_fedprox():
    # a: 1, 1.5, then -.5 + (1.5 - 1) = 0; b: 1, .5, .5; mean (.5 - 3 * .5) / 4.
    algorithm = algorithms.fedprox(MODEL, 0.5, loss=body_loss, mu=1.0, local_epochs=2)
    assert float(after(algorithm, 1)[0].params["body"]) == near(0.75)
    plain = algorithms.fedavg(MODEL, 0.5, loss=body_loss, local_epochs=2)
    assert float(after(plain, 1)[0].params["body"]) == near(1 + (0.75 - 3 * 0.75) / 4)


def test_fedavgm():
    # FedAvg's means are -.25, then from .75 -.125; the momentum .9 * .25 + .125.
    algorithm = algorithms.fedavgm(MODEL, 0.5, loss=body_loss)
    assert float(after(algorithm, 1)[0].params["body"]) == near(0.75)
    assert float(after(algorithm, 2)[0].params["body"]) == near(0.75 - 0.35)


@pytest.mark.parametrize("b1, b2", [(0.9, 0.99), (0.5, 0.25)])
@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_servers(name, b1, b2):
    rate, tau = 0.1, 0.01
    algorithm = getattr(algorithms, name)(
        MODEL, 0.5, loss=body_loss, server_learning_rate=rate, b1=b1, b2=b2, tau=tau
    )
    # FedAvg's mean from w: (½ (2 - w) - 3 * ½ w) / 4. Yogi's moments start at 1e-6.
    w, m = 1.0, 0.0 if name == "fedadam" else 1e-6
    v = m
    for t in (1, 2, 3):
        g = 0.5 * w - 0.25
        m = b1 * m + (1 - b1) * g
        far = v - g * g if name == "fedadam" else np.sign(v - g * g) * g * g
        v -= (1 - b2) * far
        w -= rate * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + tau)
    assert float(after(algorithm, 3)[0].params["body"]) == pytest.approx(w, abs=1e-5)


def test_any_server_optimiser():
    algorithm = algorithms.fedopt(MODEL, 0.5, server_optimizer=optax.sgd(2.0), loss=body_loss)
    assert float(after(algorithm, 1)[0].params["body"]) == near(0.5)


def test_scaffold():
    # T = 2, η = .25. a: 1, 1.25, 1.4375, c_a = -.4375 / .5; b is its mirror image.
    algorithm = algorithms.scaffold(MODEL, 0.25, loss=body_loss, num_clients=2, local_epochs=2)
    server, clients, _ = after(algorithm, 1)
    assert float(server.params["body"]) == near(1)  # clients count equally
    assert [float(c.control["body"]) for c in clients] == near([-0.875, 0.875])
    assert float(server.control["body"]) == near(0)
    # Round 2, a: drift .875; 1 - .25 (-1 + .875) = 1.03125; then g = -.96875.
    second = 1.03125 - 0.25 * (-0.96875 + 0.875)
    _, clients, _ = after(algorithm, 2)
    assert float(clients[0].control["body"]) == near(-0.875 - (second - 1) / 0.5)


def test_scaffolds_server_control_moves_by_the_share_of_clients():
    algorithm = algorithms.scaffold(MODEL, 0.5, loss=body_loss, num_clients=4)
    server, clients, _ = after(algorithm, 1, two_clients((1,)))
    assert float(clients[0].control["body"]) == near(-1)
    assert float(server.control["body"]) == near(-0.25)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_the_servers_memory_is_the_mean_of_the_clients_when_some_do_not_answer(name):
    data = digits(num_clients=6, fraction=0.2)
    model = mlp(10, hidden=(4,))
    algorithm = getattr(algorithms, name)(model, 0.1, num_clients=6)
    federation = federate(
        algorithm, model, data, cohort_size=4, participation=participation.uniform(dropout=0.5)
    )
    state, answered = federation.init(jax.random.key(1)), []
    for _ in range(4):
        state, result = federation.run_round(state)
        answered.append(int(result.counts.answered))
    assert set(answered) - {0, 4}, answered
    clients = [federation.client_state(state, k)[0] for k in range(6)]
    mean = jax.tree.map(lambda *a: np.mean(a, axis=0), *clients)
    assert optax.tree.norm(mean) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.server[1], mean)


def test_feddyn():
    algorithm = algorithms.feddyn(MODEL, 0.5, loss=body_loss, num_clients=2, alpha=0.5)
    server, clients, _ = after(algorithm, 1)
    assert [float(c.control["body"]) for c in clients] == near([-0.25, 0.25])
    # Round 2, a: gradient -1 - h_a = -.75, w_a = 1.375, h_a = -.25 - .5 * .375.
    _, clients, _ = after(algorithm, 2)
    assert float(clients[0].control["body"]) == near(-0.4375)
    # One client alone: h = -.5 * .5, w = 1.5 + .25 / .5.
    alone = algorithms.feddyn(MODEL, 0.5, loss=body_loss, num_clients=1, alpha=0.5)
    server, _, _ = after(alone, 1, two_clients((1,)))
    assert float(server.control["body"]) == near(-0.25)
    assert float(server.params["body"]) == near(2.0)


def test_perfedavg():
    # b: w' = .5, g = .5, w = .75; a with its one example twice: w' = 1.5, w = 1.25.
    first = algorithms.perfedavg(MODEL, 0.5, loss=body_loss, alpha=0.5)
    assert float(after(first, 1)[0].params["body"]) == near(0.875)
    # The Hessian is 1: the step is (1 - α) as long.
    second = algorithms.perfedavg(MODEL, 0.5, loss=body_loss, alpha=0.5, hessian_free=True)
    assert float(after(second, 1)[0].params["body"]) == pytest.approx(0.9375, abs=1e-4)


def test_perfedavgs_adapted_model_takes_an_epoch_of_alpha():
    algorithm = algorithms.perfedavg(MODEL, 0.5, loss=body_loss, alpha=0.25)
    output = algorithm.client_update(*first_of(algorithm), window(), jax.random.key(0))
    assert float(output.params["body"]) == near(1.25)


def test_pfedme():
    # λ = 1, inner step .5: θ_a = 1.5 (where -.5 + .5 = 0), w_a = 1 - .5 (1 - 1.5) = 1.25.
    algorithm = algorithms.pfedme(
        MODEL, 0.5, loss=body_loss, personal_learning_rate=0.5, lam=1.0, inner_steps=2, beta=2.0
    )
    server, clients, personal = after(algorithm, 1)
    assert [float(c.params["body"]) for c in clients] == near([1.5, 0.5])
    assert float(server.params["body"]) == near(1)
    assert personal == [c.params for c in clients]
    server, _, _ = after(algorithm, 1, two_clients((1,)))
    assert float(server.params["body"]) == near(1.5)  # β = 2


def test_ditto():
    # w as FedAvg: .625. v_a: 1, 1.5, 1.5; round 2, centre .625: 1.3125, 1.3125.
    algorithm = algorithms.ditto(MODEL, 0.5, loss=body_loss, lam=1.0, local_epochs=2)
    server, _, personal = after(algorithm, 1)
    assert float(server.params["body"]) == near(0.625)
    assert [float(p["body"]) for p in personal] == near([1.5, 0.5])
    assert float(after(algorithm, 2)[2][0]["body"]) == near(1.3125)


def test_ditto_with_aligned_personal_steps():
    """pFLAlign's preconditioner inside Ditto: v and u stay with the client, m restarts."""
    aligned = align_transform(10.0)
    algorithm = algorithms.ditto(MODEL, 0.5, loss=body_loss, lam=0.0, personal_tx=aligned)
    _, clients, personal = after(algorithm, 2)
    params = {"body": jnp.ones(()), "head": jnp.zeros(())}
    state = aligned.init(params)
    for _ in range(2):
        grads = {"body": params["body"] - 2, "head": jnp.zeros(())}
        updates, state = aligned.update(grads, new_round(state), params)
        params = optax.apply_updates(params, updates)
    assert float(personal[0]["body"]) == near(float(params["body"]))
    assert float(clients[0].opt_state[1].v["body"]) == near(float(state.v["body"]))


def test_apfl():
    # a: w = 1.5, v = 1 + .5 * .5; received with w = .75: .5 * 1.25 + .5 * .75.
    algorithm = algorithms.apfl(MODEL, 0.5, loss=body_loss)
    server, clients, personal = after(algorithm, 1)
    assert float(server.params["body"]) == near(0.75)
    assert float(clients[0].params["body"]) == near(1.25)
    assert float(personal[0]["body"]) == near(1.0)
    # Round 2: <v - w, g> = .5 * -1, α = .5 + .5 * .5.
    assert float(after(algorithm, 2)[1][0].alpha) == near(0.75)


def test_apfls_share_stays_within_bounds_at_every_step():
    """It must not wind up beyond 1, from where it would have to come back."""
    algorithm = algorithms.apfl(MODEL, 1.8, loss=body_loss, alpha=0.1, local_epochs=4)
    _, clients, _ = after(algorithm, 1, two_clients((1,)))

    def rolled_out(keep):
        w, v, share = 1.0, 1.0, 0.1
        for _ in range(4):
            used = min(max(share, 0), 1)
            g = used * v + (1 - used) * w - 2
            slope = (v - w) * g
            w, v, share = w - 1.8 * (w - 2), v - 1.8 * used * g, keep(share - 1.8 * slope)
        return share

    expected = rolled_out(lambda share: min(max(share, 0), 1))
    assert abs(expected - min(rolled_out(float), 1)) > 0.1
    assert float(clients[0].alpha) == near(expected)


def test_fedper():
    # η = .25, both parts move by .25.
    server, clients, personal = after(algorithms.fedper(MODEL, 0.25, loss=loss, **HEAD), 1)
    assert floats(server.shared) == {"body": near(0.875), "head": None}
    assert [float(c.own["head"]) for c in clients] == near([0.25, -0.25])
    assert floats(personal[0]) == {"body": near(0.875), "head": near(0.25)}


def test_lgfedavg():
    server, clients, _ = after(algorithms.lgfedavg(MODEL, 0.25, loss=loss, **HEAD), 1)
    assert floats(server.shared) == {"body": None, "head": near(-0.125)}
    assert [float(c.own["body"]) for c in clients] == near([1.25, 0.75])


def test_fedbn():
    server, clients, _ = after(algorithms.fedbn(MODEL, 0.25, loss=loss, norms=("he*",)), 1)
    assert floats(server.shared) == {"body": near(0.875), "head": None}
    assert float(clients[1].own["head"]) == near(-0.25)


def test_fedrep():
    # Head first: a: .25; then the body at 1.25: g = -.75, body 1.1875; b is its mirror image.
    server, clients, _ = after(algorithms.fedrep(MODEL, 0.25, loss=loss, **HEAD), 1)
    assert [float(c.own["head"]) for c in clients] == near([0.25, -0.25])
    assert float(server.shared["body"]) == near(1 + (0.1875 - 3 * 0.1875) / 4)


def test_fedreps_body_draws_afresh():
    """Not what its head has drawn: both move by their step's noise."""

    def noise(params, batch, key):
        return (params["body"] + params["head"]) * jax.random.normal(key)

    server, clients, _ = after(
        algorithms.fedrep(MODEL, 1.0, loss=noise, **HEAD), 1, two_clients((1,))
    )
    assert abs(float(server.shared["body"]) - 1 - float(clients[0].own["head"])) > 1e-3


def test_fedbabus_fine_tuning_has_its_own_step_size():
    algorithm = algorithms.fedbabu(MODEL, 0.25, loss=loss, **HEAD, fine_tune_learning_rate=0.125)
    output = algorithm.client_update(*first_of(algorithm), window(), jax.random.key(0))
    assert floats(output.params) == {"body": near(1.125), "head": near(0.125)}
    assert float(output.message["body"]) == near(0.25)


def test_fedbabu():
    server, _, personal = after(algorithms.fedbabu(MODEL, 0.25, loss=loss, **HEAD), 2)
    # Bodies: 1, .875, then a: .875 + .25 * 1.125, b: .875 - .25 * .875.
    assert float(server.body["body"]) == near(0.875 + (0.28125 - 3 * 0.21875) / 4)
    assert float(server.head["head"]) == 0 and float(personal[0]["head"]) == 0


def test_fedala():
    # Round 1 is FedAvg: w = (.875, -.125), θ_a = (1.25, .25). Round 2, a: prediction .75,
    # dF/dW = -1.25 * -.375, W = 1 - .46875; head .25 - .375 W.
    algorithm = algorithms.fedala(MODEL, 0.25, loss=loss, **HEAD)
    _, clients, _ = after(algorithm, 2)
    weight = 1 - 0.46875
    assert float(clients[0].weights["head"]) == near(weight)
    head = 0.25 - 0.375 * weight
    error = 0.875 + head - 2
    assert floats(clients[0].params) == {
        "body": near(0.875 - 0.25 * error), "head": near(head - 0.25 * error)
    }  # fmt: skip


def test_fedamp():
    # Round 1: all models are equal, u = 1; a: 1.5, b: .5. Round 2: distance² = 1.
    algorithm = algorithms.fedamp(
        MODEL, 0.5, loss=body_loss, num_clients=2, alpha=0.5, sigma=1.0, lam=0.0
    )
    server, _, personal = after(algorithm, 1)
    assert server.models["body"].tolist() == [1.5, 0.5]
    share = 0.5 * np.exp(-1.0)
    assert [float(p["body"]) for p in personal] == near([1.5 - share, 0.5 + share])
    capped = algorithms.fedamp(
        MODEL, 0.5, loss=body_loss, num_clients=2, alpha=9.0, sigma=1.0, lam=0.0
    )
    assert float(after(capped, 1)[2][0]["body"]) == near(0.5)


def test_fedamp_pulls_to_the_cloud_model_where_it_starts():
    # λ / α = ½. Round 1, a: 1, 1.5, then g = -.5 + ½ * .5; b is its mirror image.
    algorithm = algorithms.fedamp(
        MODEL, 0.5, loss=body_loss, num_clients=2, alpha=0.5, sigma=1.0, lam=0.25, local_epochs=2
    )
    server, _, _ = after(algorithm, 1)
    assert server.models["body"].tolist() == near([1.625, 0.375])
    cloud = 1.625 - 0.5 * np.exp(-(1.25**2)) * 1.25
    w = cloud + 0.5 * (2 - cloud)
    w -= 0.5 * (w - 2 + 0.5 * (w - cloud))
    assert float(after(algorithm, 2)[0].models["body"][0]) == near(w)


def test_fedproto_prototypes():
    # Step size 0: features are x. Prototypes: label 0: (1 + 3) / 2; label 1: (2 + 4) / 2.
    algorithm = algorithms.fedproto(FEATURES, 0.0, num_classes=2)
    server, _, personal = after(algorithm, 1, labelled(), FEATURES)
    assert server.mean.ravel().tolist() == near([2, 3]) and server.known.tolist() == [1, 1]
    head = personal[0]["head"]
    assert head["kernel"].tolist() == [near([4, 6])] and head["bias"].tolist() == near([-4, -9])
    logits = FEATURES.apply(personal[0], np.array([[2.4], [2.6]]))
    assert logits.argmax(1).tolist() == [0, 1]  # the nearer prototype


def test_fedproto_never_predicts_a_class_without_a_prototype():
    # Of three classes two have examples: the third is the least likely, at a finite loss.
    head = {"kernel": np.zeros((1, 3), np.float32), "bias": np.zeros(3, np.float32)}
    model = FEATURES._replace(init=lambda key, x: {**FEATURES.init(key, x), "head": head})
    algorithm = algorithms.fedproto(model, 0.0, num_classes=3)
    _, _, personal = after(algorithm, 1, labelled(), model)
    logits = np.asarray(algorithm.predict(personal[0], np.array([[2.4], [2.6]])))
    # 2 c z - c² with prototypes 2 and 3, and 10 below the smaller of the two.
    np.testing.assert_allclose(logits, [[5.6, 5.4, -4.6], [6.4, 6.6, -3.6]], rtol=1e-6)


def test_fedproto_pulls_features_to_prototypes():
    pulled = algorithms.fedproto(FEATURES, 0.1, num_classes=2, lam=1.0)
    plain = algorithms.fedproto(FEATURES, 0.1, num_classes=2, lam=0.0)
    (server, before, _), (_, after_plain, _) = (after(pulled, 1, labelled(), FEATURES),
                                                after(plain, 2, labelled(), FEATURES))  # fmt: skip
    _, after_pulled, _ = after(pulled, 2, labelled(), FEATURES)
    # a: the gradient of (body * 2 - c_1)² by body.
    body = float(before[0].params["body"])
    extra = 0.1 * 2 * (body * 2 - float(server.mean[1, 0])) * 2
    found = float(after_plain[0].params["body"]) - float(after_pulled[0].params["body"])
    assert found == pytest.approx(extra, rel=1e-4)


def test_feddbe_agrees_on_the_mean_and_keeps_a_bias():
    algorithm = algorithms.feddbe(FEATURES, 0.5, kappa=0.0)
    server, clients, personal = after(algorithm, 1, labelled(), FEATURES)
    # Features of the local models: x of a is 2, x of b 1, 3 and 4; weighted by examples.
    still = algorithms.feddbe(FEATURES, 0.0, kappa=0.0)
    assert after(still, 1, labelled(), FEATURES)[0].mean.tolist() == near([2.5])
    assert float(server.known) == 1 and abs(float(server.mean[0]) - 2.5) > 1e-2
    # a: softmax of (2, 0); d loss / d bias = p_0 * kernel_0 = .8808.
    p = 1 / (1 + np.exp(-2.0))
    assert clients[0].bias.tolist() == near([-0.5 * p])
    head = personal[0]["head"]
    expected = server.params["head"]["bias"] + clients[0].bias @ server.params["head"]["kernel"]
    np.testing.assert_allclose(head["bias"], expected, rtol=1e-5)


def test_feddbe_pulls_mean_features_to_the_consensus():
    def server(kappa, rounds):
        algorithm = algorithms.feddbe(FEATURES, 0.1, kappa=kappa)
        return after(algorithm, rounds, labelled(), FEATURES)[0]

    first = server(3.0, 1)  # agreed on nothing yet
    body, consensus = float(first.params["body"]), float(first.mean[0])
    assert body == float(server(0.0, 1).params["body"])
    slopes = [2 * 3.0 * (x * body - consensus) * x for x in (2, (1 + 3 + 4) / 3)]
    pull = float(server(0.0, 2).params["body"] - server(3.0, 2).params["body"])
    assert pull == pytest.approx(0.1 * (slopes[0] + 3 * slopes[1]) / 4, rel=1e-4)


def test_fedrods_personal_head_sees_fixed_features():
    algorithm = algorithms.fedrod(FEATURES, 0.5, num_classes=2)
    server, clients, personal = after(algorithm, 1, labelled(), FEATURES)
    # a has label 1 only: the prior leaves label 0 a probability of about 0, so that body and
    # generic head hardly move; the personal head descends on softmax (2, 0) with label 1.
    p = 1 / (1 + np.exp(-2.0))
    kernel = clients[0].own["kernel"]
    np.testing.assert_allclose(kernel, [[-0.5 * p * 2, 0.5 * p * 2]], rtol=1e-4)
    np.testing.assert_allclose(
        personal[0]["head"]["kernel"], server.params["head"]["kernel"] + kernel, rtol=1e-5
    )
