"""Diagnostics: exact numbers on small trees, and what rounds report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import MODEL, body_loss, two_clients
from hand import after as rounds_of

from pflalign_jax import algorithms, datasets, diagnostics, models
from pflalign_jax.align import AlignState
from pflalign_jax.federated import federate

STATE = AlignState(
    jnp.int32(3),
    m={"w": jnp.array([0.0, 1.0, 2.0, 0.5])},
    v={"w": jnp.array([1.0, 2.0, 5.0, 0.25])},
    u={"w": jnp.array([0.0, 1.0, 10.0, 0.125])},
)
"""P is 0, ½, 1 (capped), ½; the noise v - m² is 1, 1, 1, 0."""
BEFORE, AFTER = {"w": jnp.array([0.0, 3.0, 0.0, -4.0])}, {"w": jnp.array([0.0, 0.0, 0.0, -2.0])}


def described(*args):
    """What `diagnostics_summary` says of a round of one client."""
    found = diagnostics.alignment_metrics(*args)
    return diagnostics.diagnostics_summary({name: a.total / a.weight for name, a in found.items()})


def test_numbers_of_one_client():
    found = described(STATE, BEFORE, AFTER)
    assert found["P/mean"] == 0.5
    assert found["gradient_noise"] == 0.75
    assert found["gradient_noise/preconditioned"] == pytest.approx((0.25 + 1) / 4)
    assert found["direction/norm"] == 2
    assert found["direction/cosine"] == pytest.approx(8 / (5 * 2))
    # γ where there is a direction: Φ(1 / 1) = .841, and m / σ -> ∞ against Δ: 0.
    gamma = np.zeros(20)
    gamma[[16, 0]] = 0.5
    np.testing.assert_allclose(found["gamma/histogram"], gamma)
    # A quarter of P in the first bin, half in that of ½, a quarter in the last.
    assert found["P/q05"] == pytest.approx(0.2 * 1e-4)
    assert found["P/q50"] == pytest.approx(0.5, rel=0.17)
    assert found["P/q95"] == pytest.approx(1, rel=0.04)


@pytest.mark.parametrize(
    ("correction", "place"), [("none", [0]), ("sign", [0, 19]), (0.5, [10]), (1.0, [19])]
)
def test_gamma_of_other_corrections(correction, place):
    found = described(STATE, BEFORE, AFTER, correction)["gamma/histogram"]
    assert np.flatnonzero(found).tolist() == place


def test_quantiles_are_of_all_clients():
    p = jnp.geomspace(1e-3, 1e-1, 101)
    state = AlignState(jnp.int32(0), m={"w": 0 * p}, v={"w": 0 * p + 1}, u={"w": p})
    found = described(state, None, {"w": p})
    assert found["P/q50"] == pytest.approx(1e-2, rel=0.17)
    assert found["P/q05"] == pytest.approx(10**-2.9, rel=0.17)
    assert found["P/q95"] == pytest.approx(10**-1.1, rel=0.17)
    assert "direction/cosine" not in found and "gamma/histogram" not in found


@pytest.mark.parametrize(("sizes", "expected"), [((1, 3), 0.0), ((1,), 1.0)])
def test_cosine_of_updates_to_their_mean(sizes, expected):
    # a's message is +½, b's -½, their mean -¼: cosines -1 and 1.

    federation = federate(
        algorithms.fedavg(MODEL, 0.5, loss=body_loss), MODEL, two_clients(sizes), diagnostics=True
    )
    _, result = federation.run_round(federation.init(jax.random.key(0)))
    assert float(result.metrics["update/cosine"]) == pytest.approx(expected, abs=1e-6)


def test_rounds_report_and_results_stay_the_same():
    data = datasets.digits(num_clients=4, fraction=0.2)
    model = models.mlp(10, hidden=(12,))
    servers = []
    for measured in (False, True):
        algorithm = algorithms.pflalign(model, 1.0, diagnostics=measured)
        federation = federate(algorithm, model, data, diagnostics=measured)
        state, seen = federation.init(jax.random.key(0)), []
        for _ in range(2):
            state, result = federation.run_round(state)
            seen.append(diagnostics.diagnostics_summary(result.metrics))
        servers.append(jax.device_get(state.server))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *servers)
    assert "direction/cosine" not in seen[0] and -1 <= seen[1]["direction/cosine"] <= 1
    assert sum(seen[1]["gamma/histogram"]) == pytest.approx(1)
    assert 0 <= seen[1]["P/q05"] <= seen[1]["P/q50"] <= seen[1]["P/q95"] <= 1
    assert seen[1]["gradient_noise/preconditioned"] < seen[1]["gradient_noise"]


def test_a_transform_in_front_of_the_alignment():
    """FedProx's pull in pFLAlign: realignment moves away from w, the pull goes back to it."""
    from pflalign_jax.federated import proximal

    plain = algorithms.pflalign(MODEL, 0.5, loss=body_loss, precondition=False, local_epochs=2)
    none = algorithms.pflalign(
        MODEL, 0.5, loss=body_loss, precondition=False, local_epochs=2, before=proximal(0.0)
    )
    pulled = algorithms.pflalign(
        MODEL, 0.5, loss=body_loss, precondition=False, local_epochs=2, before=proximal(1.0)
    )
    assert rounds_of(plain, 2)[0] == rounds_of(none, 2)[0]
    # As FedProx in round 1: a: 1, 1.5, 1.5; b: 1, .5, .5.
    server, clients, _ = rounds_of(pulled, 1)
    assert [float(c.direction["body"]) for c in clients] == pytest.approx([0.5, -0.5])
    assert float(server.params["body"]) == pytest.approx(0.75)
