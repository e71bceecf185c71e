"""Paired differences: by hand, and how often their intervals have the truth in them."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.compare import paired
from pflalign_jax.runs.headline import ACCURACY, Headline


def scores(*of_seeds):
    """Return scores of clients a, b, ... for the seeds 0, 1, ..."""
    return {seed: dict(zip("abcdefghijkl", values, strict=False))
            for seed, values in enumerate(of_seeds)}  # fmt: skip


def test_a_difference_by_hand():
    found, rival = scores((90, 80, 70), (92, 80, 70)), scores((88, 78, 71), (88, 80, 69))
    got = paired.difference(found, rival, ACCURACY)
    # Clients: (2 + 4) / 2, (2 + 0) / 2, (-1 + 1) / 2. Their mean is 4 / 3, the standard error
    # sqrt(7 / 9), t of two degrees of freedom 4.3027.
    half = 4.3027 * math.sqrt(7 / 9)
    assert got[:3] == pytest.approx((4 / 3, 4 / 3 - half, 4 / 3 + half), abs=1e-3)
    assert (got.won, got.lost, got.agree, got.is_clear) == (2, 0, True, False)


def test_an_interval_by_the_bootstrap_by_hand():
    """Of means over ten draws from 0 and 1 the distribution is known: that of a binomial."""
    values = [0.0] * 5 + [1.0] * 5
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 9) * math.sqrt(10 / 9))
    low, high = stats.binom.ppf((tail, 1 - tail), 10, 0.5) / 10
    assert paired.interval(values) == pytest.approx((low, high))
    assert paired.interval(values) == paired.interval(values)  # the same draws


def test_clients_of_many_are_drawn_in_parts(monkeypatch):
    values = np.arange(12.0)
    whole = paired.interval(values)
    monkeypatch.setattr(paired, "AT_ONCE", 100)
    assert paired.interval(values) == pytest.approx(whole, abs=0.2)


def test_seeds_that_disagree_tell_nothing():
    rival = scores((0,) * 10, (0,) * 10)
    assert paired.difference(scores((1,) * 10, (2,) * 10), rival, ACCURACY).is_clear
    split = paired.difference(scores((-1,) * 10, (4,) * 10), rival, ACCURACY)
    assert split.low > 0 and not split.agree and not split.is_clear
    # A seed without any difference disagrees with nobody.
    assert paired.difference(scores((0,) * 10, (4,) * 10), rival, ACCURACY).is_clear


def test_less_may_be_better():
    rmse = Headline("rmse", higher_is_better=False, percent=False)
    got = paired.difference(scores((1.0,) * 10), scores((3.0,) * 10), rmse)
    assert got == (2.0, 2.0, 2.0, 10, 0, True) and got.is_clear


def test_only_what_both_have_is_compared():
    found = {1: {"a": 5.0, "b": 7.0}, 2: {"a": 1.0}}  # seed 0 diverged
    rival = {0: {"a": 100.0}, 1: {"a": 4.0, "c": 0.0}}
    got = paired.difference(found, rival, ACCURACY)
    assert (got.mean, got.won, got.lost) == (1.0, 1, 0)
    assert math.isnan(got.low) and not got.is_clear  # one client
    assert not paired.difference(found, {0: {"a": 1.0}}, ACCURACY).is_clear
    nothing = paired.difference(found, {}, ACCURACY)
    assert math.isnan(nothing.mean) and nothing.won == nothing.lost == 0


def coverage(clients, of_client, of_seed, interval, seeds=3, times=300):
    """Return how often an interval has the true mean, zero, in it.

    A client's difference is its own part and another one with each seed, both normal.
    """
    rng = np.random.default_rng(clients)
    inside = 0
    for _ in range(times):
        own = rng.normal(0, of_client, clients)
        low, high = interval(own + rng.normal(0, of_seed, (seeds, clients)))
        inside += low <= 0 <= high
    return inside / times


@pytest.mark.parametrize(
    ("clients", "of_client", "of_seed"), [(3, 3.0, 1.0), (10, 3.0, 1.0), (20, 1.0, 3.0)]
)
def test_intervals_have_the_truth_in_them_as_often_as_they_say(
    clients, of_client, of_seed, monkeypatch
):
    monkeypatch.setattr(paired, "DRAWS", 1000)
    found = coverage(clients, of_client, of_seed, lambda values: paired.interval(values.mean(0)))
    assert 0.92 <= found <= 0.98


def test_seeds_do_not_make_more_clients_of_them(monkeypatch):
    """Why a client comes with all its seeds: drawn anew in each, intervals would be too narrow."""
    monkeypatch.setattr(paired, "DRAWS", 1000)
    apart = coverage(20, 3.0, 1.0, lambda values: paired.interval(values.ravel()))
    assert apart < 0.85
