"""The private mean by hand, and its accounting against independent bounds."""

import sys

import jax
import numpy as np
import pytest
from postbox import MODEL, after, dataset, only, post, sent
from scipy import optimize, stats

from pflalign_jax import algorithms, messages
from pflalign_jax.federated import federate

VECTORS = [[3.0, 4.0], [0.0, 0.5]]


def private(algorithm, clip_norm=1.0, noise=0.0, cohort_size=2, seed=0):
    return messages.private_mean(algorithm, clip_norm, noise, cohort_size=cohort_size, seed=seed)


def test_clients_are_clipped_and_count_equally():
    got = sent(private(post()), dataset(VECTORS, sizes=[1, 3]))
    np.testing.assert_allclose(got, [0.6 / 2, (0.8 + 0.5) / 2], rtol=1e-6)


def test_the_sum_is_divided_by_the_expected_cohort_whoever_answers():
    data = dataset(VECTORS)
    got = sent(private(post()), data, cohort_size=2, participation=only(0))
    np.testing.assert_allclose(got, [0.3, 0.4], rtol=1e-6)


def test_nobody_moves_the_sum_by_more_than_the_bound():
    data = dataset(VECTORS)
    greedy = messages.scaled_update(post(), np.array([0]), 1e6)
    np.testing.assert_allclose(sent(private(greedy), data), [0.3, 0.65], rtol=1e-6)


def test_noise_has_the_stated_deviation_and_is_fresh_in_every_round():
    data = dataset(np.zeros((4, 20000)))
    algorithm = private(post(), 3.0, noise=2.0, cohort_size=4)
    first, second = (
        np.asarray(after(algorithm, data, rounds)[1].server.own["w"]) for rounds in (1, 2)
    )
    assert first.std() == pytest.approx(2.0 * 3.0 / 4, rel=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    other = private(post(), 3.0, noise=2.0, cohort_size=4, seed=1)
    assert not np.allclose(first, after(other, data)[1].server.own["w"])


def test_the_key_of_the_noise_is_not_broadcast():
    data = dataset(VECTORS)
    plain = algorithms.fedavg(MODEL, 0.1)
    federation, state, _ = after(private(plain), data)
    received = private(plain).broadcast(state.server)
    assert jax.tree.structure(received) == jax.tree.structure(
        plain.init({"w": 0}, jax.random.key(0))[0]
    )
    assert federation.bytes_per_round == federate(plain, MODEL, data).bytes_per_round


def exact_epsilon(noise, rounds, delta):
    """Return ε of composed Gaussian mechanisms, exactly (Balle and Wang, arXiv:1805.06530)."""
    mu = np.sqrt(rounds) / noise

    def excess(eps):
        first = stats.norm.cdf(mu / 2 - eps / mu)
        return first - np.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu) - delta

    return optimize.brentq(excess, 0, 500)


def simple_epsilon(noise, rounds, delta):
    """Return Mironov's conversion of Rényi divergences α T / 2σ², over real orders."""
    a = np.linspace(1.01, 100, 20000)
    return (a * rounds / (2 * noise**2) + np.log(1 / delta) / (a - 1)).min()


@pytest.mark.parametrize(("noise", "rounds"), [(2.0, 1), (4.0, 20), (20.0, 100)])
def test_epsilon_of_full_participation_lies_between_known_bounds(noise, rounds):
    pytest.importorskip("dp_accounting")
    found = messages.central_epsilon(noise, rounds, invited=20, num_clients=20, delta=1e-5)
    # Replacing a client moves the sum by up to twice the norm.
    assert exact_epsilon(noise / 2, rounds, 1e-5) <= found
    assert found <= simple_epsilon(noise / 2, rounds, 1e-5) * 1.01
    local = messages.local_epsilon(noise * 3.0, 3.0, rounds, 1e-5)
    assert local == pytest.approx(found)


def test_sampling_never_costs_and_helps_large_populations():
    pytest.importorskip("dp_accounting")

    def epsilon(noise, invited, num_clients):
        return messages.central_epsilon(
            noise, 50, invited=invited, num_clients=num_clients, delta=1e-5
        )

    assert epsilon(1.0, 10, 20) <= epsilon(1.0, 20, 20)
    assert epsilon(4.0, 10, 1000) < 0.2 * epsilon(4.0, 1000, 1000)
    assert epsilon(4.0, 10, 1000) < epsilon(4.0, 20, 1000)


def test_without_noise_or_rounds():
    assert messages.central_epsilon(0, 1, invited=1, num_clients=2, delta=1e-5) == np.inf
    assert messages.central_epsilon(1.0, 0, invited=1, num_clients=2, delta=1e-5) == 0
    assert messages.local_epsilon(0, 1.0, 3, 1e-5) == np.inf


def test_a_missing_accountant_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"dp-accounting.*pflalign-jax\[dp\]"):
        messages.central_epsilon(1.37, 1, invited=1, num_clients=2, delta=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_norm": 0.0}, "max_norm=0.0"),
        ({"noise": -1.0}, "noise_multiplier=-1.0"),
        ({"cohort_size": 0}, "cohort_size=0"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        private(post(), **arguments)


def test_impossible_combinations_are_refused():
    everything = messages.robust(post(), messages.coordinate_median())
    with pytest.raises(ValueError, match="takes all messages"):
        private(everything)
    with pytest.raises(ValueError, match="takes all messages"):
        messages.robust(everything, messages.coordinate_median())
    with pytest.raises(ValueError, match="private"):
        messages.robust(private(post()), messages.coordinate_median())
    with pytest.raises(ValueError, match="delta=1"):
        messages.central_epsilon(1.0, 1, invited=1, num_clients=2, delta=1)
