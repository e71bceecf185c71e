"""pFLAlign's extensions, which are ours: a server's optimiser, and directions that grow old.

Two clients as in `hand`, of which only some take part in a round.
"""

import jax
import numpy as np
import optax
import pytest
from hand import MODEL, body_loss, two_clients

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.algorithms.averaging import heavy_ball
from pflalign_jax.federated import federate
from pflalign_jax.federated.participation import Participation, Turnout
from pflalign_jax.runs.build import build_algorithm
from pflalign_jax.runs.config import default_config, resolve
from pflalign_jax.tasks import classification


def cohorts(*rounds):
    """Return a participation in which these positions take part, round by round."""

    def draw(key, round_index, client_ids, sizes, cohort_size):
        cohort = np.array(rounds[round_index])
        return Turnout(cohort, len(cohort))

    return Participation(draw, step_limit=None, sure=False, amplifies=False)


def after(algorithm, *rounds, model=MODEL, data=None):
    """Return the federation and its state after rounds with these cohorts."""
    data = two_clients() if data is None else data
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))
    federation = federate(algorithm, model, data, mesh=mesh, participation=cohorts(*rounds))
    state = federation.init(jax.random.key(0))
    for _ in rounds:
        state, _ = federation.run_round(state)
    return federation, state


def aligned(**options):
    return algorithms.pflalign(MODEL, 1.0, loss=body_loss, precondition=False, **options)


def bodies(federation, state):
    return [float(federation.personal_params(state, k)["body"]) for k in range(2)]


def test_a_direction_is_worth_less_for_each_round_that_is_missed():
    algorithm = algorithms.pflalign(
        MODEL, 0.25, loss=body_loss, precondition=False, correction=0.5, staleness=0.5
    )
    federation, state = after(algorithm, [0])
    # a: 1 - .25 (1 - 2) = 1.25 = w. It took part in the round before: all of its direction counts.
    assert float(state.server.params["body"]) == 1.25 and bodies(federation, state) == [1.5, 1.25]
    federation, state = after(algorithm, [0], [1], [1])
    # b: 1.25 -> .9375 = w; then it starts from w + Δ_b = .625, and half of Δ_b is taken back.
    w, delta_b = 0.9375, -0.3125
    w_b = (w + delta_b) * (1 - 0.25) - 0.5 * delta_b
    assert float(state.server.params["body"]) == pytest.approx(w_b)
    # Δ_a = .25 is two rounds old.
    used = 0.25 * 0.5**2
    assert bodies(federation, state) == pytest.approx([w_b + used, w_b + (w_b - w)])
    federation, state = after(algorithm, [0], [1], [1], [0])
    # The correction takes back half of what was used, not of what was kept.
    start = w_b + used
    w_a = start - 0.25 * (start - 2.0) - 0.5 * used
    assert float(state.server.params["body"]) == pytest.approx(w_a)
    # It is new again.
    assert bodies(federation, state)[0] == pytest.approx(w_a + (w_a - w_b))
    assert int(federation.client_state(state, 0).last_round) == 3


def test_evaluation_uses_what_the_direction_is_worth():
    data = datasets.digits(num_clients=4, fraction=0.15, num_new_clients=1)
    model = models.logistic(10)
    algorithm = algorithms.pflalign(model, 5.0, staleness=0.0)
    federation, state = after(algorithm, [0, 1, 2, 3], [0, 1], model=model, data=data)
    scores = federation.evaluate(state, adapt=False) | federation.evaluate_new(state, adapt=False)
    received, shared = (scores[f"test/{n}"].loss for n in ("personal/received", "global"))
    # Nothing is left of the directions of those who missed a round; newcomers have none.
    np.testing.assert_allclose(received[2:], shared[2:], rtol=1e-5)
    assert (abs(received[:2] - shared[:2]) > 1e-3).all()
    received, shared = (scores[f"new_clients/{n}"].loss for n in ("personal/received", "global"))
    np.testing.assert_allclose(received, shared, rtol=1e-5)


def test_off_they_are_the_published_method_bit_for_bit():
    """Also in what is stored, so that checkpoints from before can be read."""
    order, everyone = [[0], [1], [0, 1]], [[0, 1]] * 3
    found = {}
    for name, rounds, options in (
        ("published", order, {}),
        ("no decay", order, {"staleness": 1.0}),
        ("no momentum", order, {"server_tx": optax.sgd(1.0)}),
        ("everyone", everyone, {}),
        ("everyone, decay", everyone, {"staleness": 0.5}),
    ):
        algorithm = algorithms.pflalign(MODEL, 5.0, loss=body_loss, **options)
        _, found[name] = after(algorithm, *rounds)
    assert len(jax.tree.leaves(found["published"].server)) == 2  # body and head
    assert len(jax.tree.leaves(found["published"].clients)) == 1 + 3 * 2  # count; Δ, v and u
    for first, second in (
        ("published", "no decay"),
        ("published", "no momentum"),
        ("everyone", "everyone, decay"),
    ):
        a, b = found[first], found[second]
        jax.tree.map(np.testing.assert_array_equal, a.server.params, b.server.params)
        for field in ("direction", "align"):
            pair = (getattr(state.clients, field) for state in (a, b))
            jax.tree.map(np.testing.assert_array_equal, *pair)


def test_the_server_steps_with_its_own_optimiser():
    with_momentum = aligned(server_tx=heavy_ball(0.5), realignment=False)
    federation, state = after(with_momentum, [0], [1])
    # a: 1 + (2 - 1) = 2; b: 2 - 2 = 0, so w = 2 + (-2 + .5 * 1) = .5.
    assert float(state.server.params["body"]) == 0.5
    # The momentum stays on the server.
    assert federation.bytes_per_round == federate(aligned(), MODEL, two_clients()).bytes_per_round


def test_a_config_sets_both_by_numbers():
    config = default_config()
    config.algorithm.server_tx, config.algorithm.staleness = 0.9, 0.5
    model = models.logistic(10)
    algorithm = build_algorithm(resolve(config), model, classification(), 10, 4)
    server, client = algorithm.init({"w": np.zeros(3, np.float32)}, jax.random.key(0))
    assert jax.tree.leaves(server.opt_state)[0].shape == (3,) and int(client.last_round) == -1
    config.algorithm.server_tx = 1.0
    with pytest.raises(ValueError, match=r"server_tx=1\.0: .*momentum=1\.0 .* in \[0, 1\)"):
        build_algorithm(resolve(config), model, classification(), 10, 4)


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"pflalign: staleness=1\.5 .* in \[0, 1\]"):
        aligned(staleness=1.5)
    with pytest.raises(ValueError, match=r"staleness=0\.5 does nothing with realignment=False"):
        aligned(staleness=0.5, realignment=False)
