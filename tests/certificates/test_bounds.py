"""Bounds as formulas: exact values, round-up, and how often they fail on clients of known error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax.certificates import (
    Certificate,
    Gaussian,
    best_of,
    binary_kl,
    chernoff_kl,
    clopper_pearson,
    gaussian_kl,
    holdout,
    kl_inverse,
    leaf_scales,
    log_xi,
    pac_bayes,
    pooled_holdout,
    pooled_pac_bayes,
)
from pflalign_jax.certificates.gaussians import draw

DELTA = 0.05
CLIENTS = 2000
MOST = DELTA * CLIENTS + 3 * np.sqrt(DELTA * (1 - DELTA) * CLIENTS)
"""More violations than this have a probability below 0.002 where each has one of DELTA."""


def test_kl_inverse_of_no_errors():
    c = np.array([0.0, 1e-6, 0.05, 1.0, 30.0])
    np.testing.assert_allclose(kl_inverse(0.0, c), -np.expm1(-c), rtol=1e-9, atol=1e-14)
    assert kl_inverse(1.0, 0.1) == 1 and kl_inverse(0.3, np.inf) == 1


def test_kl_inverse_is_the_smallest_bound_and_rounded_up():
    q, c = np.random.default_rng(0).uniform(size=(2, 500))
    p = kl_inverse(q, c)
    assert (p >= q).all() and (p <= 1).all()
    free = p < 1 - 1e-9
    assert (binary_kl(q, p)[free] >= c[free]).all()
    assert (binary_kl(q, p - 1e-9)[free] <= c[free]).all()
    # In one call as one by one.
    assert [float(kl_inverse(*each)) for each in zip(q[:5], c[:5], strict=True)] == p[:5].tolist()


def test_log_xi_is_maurers_sum():
    exact = [1.539, 2.256, 2.581, 3.696]
    assert [round(log_xi(n), 3) for n in (10, 50, 100, 1000)] == exact
    for n in (1, 7, 10, 1000):
        assert 0.5 * np.log(n) <= log_xi(n) <= log_xi(n, exact=False) + 1e-12
    assert log_xi(10**6) == pytest.approx(np.log(2e3))


def test_clopper_pearson_inverts_the_binomial_distribution():
    from scipy.stats import binom

    errors, n = np.array([0, 3, 40, 99]), 100
    limits = clopper_pearson(errors, n, DELTA)
    np.testing.assert_allclose(binom.cdf(errors, n, limits), DELTA, rtol=1e-5)
    assert clopper_pearson(n, n, DELTA) == 1
    assert clopper_pearson(0, n, DELTA) == pytest.approx(1 - DELTA ** (1 / n))
    assert (limits <= chernoff_kl(errors / n, n, DELTA) + 1e-9).all()  # exact is tighter


def test_gaussian_kl_is_the_mean_log_ratio():
    rng = np.random.default_rng(1)
    mean, prior = ({"a": rng.normal(size=(3, 2)), "b": rng.normal(size=2)} for _ in range(2))
    posterior = Gaussian(mean, {"a": rng.normal(size=(3, 2)) - 1, "b": np.float64(-0.5)})
    scale = {"a": np.float64(0.7), "b": np.array([0.5, 2.0])}
    exact = gaussian_kl(posterior, prior, scale)
    draws, total = 200_000, 0.0
    for name in mean:
        s, sigma = scale[name], np.exp(posterior.log_scale[name])
        w = mean[name] + sigma * rng.normal(size=(draws, *mean[name].shape))
        logs = [
            -0.5 * ((w - centre) / spread) ** 2 - np.log(spread)
            for centre, spread in ((mean[name], sigma), (prior[name], s))
        ]
        total += (logs[0] - logs[1]).reshape(draws, -1).sum(1).mean()
    assert exact == pytest.approx(total, rel=0.01)


def test_gaussian_kl_of_a_moved_mean_is_its_squared_distance():
    """What realignment keeps small is what the certificate pays for: ‖Δ‖² / 2 s²."""
    w, delta = {"a": jnp.arange(4.0)}, {"a": jnp.array([0.1, 0.0, -0.3, 0.2])}
    moved = jax.tree.map(jnp.add, w, delta)
    assert gaussian_kl(moved, w, {"a": 0.5}) == pytest.approx(0.14 / (2 * 0.25), rel=1e-5)
    with pytest.raises(ValueError, match="one structure"):
        gaussian_kl(moved, {"b": w["a"]}, {"a": 0.5})


def test_scales_of_leaves_follow_their_parameters():
    params = {"w": jnp.full((10, 10), 2.0), "bias": jnp.zeros(10)}
    scales = leaf_scales(params, 0.5)
    assert float(scales["w"]) == pytest.approx(1.0)
    assert 0 < float(scales["bias"]) < 0.02  # not 0: its divergence would be infinite
    posterior = Gaussian(params, jax.tree.map(jnp.log, scales))
    drawn = draw(posterior, jax.random.key(0))
    assert float(jnp.std(drawn["w"])) == pytest.approx(1.0, rel=0.2)


def test_a_certificate_by_hand():
    found = pac_bayes(0.1, kl=5.0, n=200, delta=0.05)
    assert found.bound == kl_inverse(0.1, (5.0 + log_xi(200) + np.log(20)) / 200)
    assert (found.empirical, found.kl, found.n, found.kind) == (0.1, 5.0, 200, "pac_bayes")
    estimated = pac_bayes(0.1, kl=5.0, n=200, delta=0.05, draws=4)
    inner = kl_inverse(0.1, np.log(1 / 0.01) / 800)
    by_hand = kl_inverse(inner, (5.0 + log_xi(200) + np.log(1 / 0.04)) / 200)
    assert estimated.bound == pytest.approx(by_hand, abs=1e-12)
    shared = pac_bayes(0.1, kl=5.0, n=200, delta=0.05, draws=4, shared_draws=True)
    assert found.bound < estimated.bound < shared.bound
    many = pac_bayes([0.1, 0.2], [5.0, 0.0], [200, 50])
    assert many.bound.shape == (2,) and many.bound[0] == found.bound


def test_pooled_and_best_of_by_hand():
    pooled = pooled_pac_bayes([0.1, 0.3], [2.0, 4.0], [100, 300])
    assert pooled.bound == pac_bayes(0.25, 6.0, 400).bound and pooled.n == 400
    assert pooled_holdout([1, 5], [50, 50]).bound == holdout(6, 100).bound
    assert pooled_holdout([50, 49], [50, 50]).bound == 1  # above 1 - 1/N there is no limit
    two = [pac_bayes([0.1, 0.2], kl, [100, 100], DELTA / 2) for kl in ([1.0, 9.0], [2.0, 3.0])]
    best = best_of(two)
    assert best.kl.tolist() == [1.0, 3.0] and best.delta == DELTA
    assert (best.bound == np.minimum(two[0].bound, two[1].bound)).all()
    assert isinstance(best, Certificate)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kl_inverse(1.1, 0.1),
        lambda: kl_inverse(0.1, -1.0),
        lambda: kl_inverse(np.nan, 0.1),
        lambda: log_xi(0),
        lambda: clopper_pearson(2.5, 10, DELTA),
        lambda: clopper_pearson(11, 10, DELTA),
        lambda: pac_bayes(0.1, -1.0, 10),
        lambda: pac_bayes(0.1, np.nan, 10),
        lambda: pac_bayes(0.1, 1.0, 0),
        lambda: pac_bayes(0.1, 1.0, 10, delta=0.0),
        lambda: pac_bayes(0.1, 1.0, 10, draws=0),
        lambda: holdout(1, 10, delta=1.0),
        lambda: pooled_holdout([1], [10], delta=0.4),
    ],
)
def test_values_out_of_range_are_refused_by_name(call):
    with pytest.raises(ValueError, match="is not allowed; it must be"):
        call()


# How often a bound fails, over clients whose true error is known. Predictors are thresholds on
# [0, 1]: predictor h is wrong with probability `errors[h]`, independently of the others, and the
# posterior is chosen by looking at the sample, as a user would.

ERRORS = np.linspace(0.02, 0.5, 9)


def posteriors(counts, n, temperature):
    """Return Gibbs posteriors ``[K, H]`` of a uniform prior, and their KL ``[K]``."""
    logits = -temperature * counts / np.maximum(n[:, None], 1)
    q = np.exp(logits - logits.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(q > 0, q * np.log(q * len(ERRORS)), 0).sum(1)
    return q, kl


def simulate(rng, clients, sizes=(20, 60)):
    n = rng.choice(sizes, clients)
    counts = rng.binomial(n[:, None], ERRORS)
    q, kl = posteriors(counts, n, rng.choice([0.0, 10.0, 100.0, 1000.0]))
    return n, (q * counts).sum(1) / n, kl, (q * ERRORS).sum(1), q, counts


def test_coverage_of_each_client():
    n, empirical, kl, true, q, counts = simulate(np.random.default_rng(2), CLIENTS)
    assert (pac_bayes(empirical, kl, n, DELTA).bound < true).sum() <= MOST
    # Estimated from fresh predictors for every (example, draw): losses of draws are independent.
    rng, draws = np.random.default_rng(3), 2
    share = counts / n[:, None]
    estimate = rng.binomial(n * draws, (q * share).sum(1)) / (n * draws)
    assert (pac_bayes(estimate, kl, n, DELTA, draws=draws).bound < true).sum() <= MOST


def test_coverage_of_pooled_clients():
    """2,000 federations of five clients each."""
    n, empirical, kl, true, *_ = simulate(np.random.default_rng(4), 5 * CLIENTS)
    n, empirical, kl, true = (a.reshape(CLIENTS, 5) for a in (n, empirical, kl, true))
    failed = pooled_pac_bayes(empirical, kl, n, DELTA).bound < (n * true).sum(1) / n.sum(1)
    assert failed.sum() <= MOST
    # Clients of very different errors, whose sum is not binomial.
    rng = np.random.default_rng(7)
    errors = rng.choice([0.01, 0.5, 0.9, 1.0], (CLIENTS, 5))
    limit = pooled_holdout(rng.binomial(n, errors), n, DELTA).bound
    assert (limit < (n * errors).sum(1) / n.sum(1)).sum() <= MOST


@pytest.mark.parametrize("zero_one", [True, False])
def test_coverage_of_held_out_bounds(zero_one):
    rng = np.random.default_rng(5)
    n, error = rng.choice([5, 30, 200], CLIENTS), rng.uniform(0.01, 0.6, CLIENTS)
    losses = rng.binomial(n, error)
    if not zero_one:  # a loss that is 0 or ½: half the mean
        losses, error = losses / 2, error / 2
    failed = holdout(losses, n, DELTA, zero_one=zero_one).bound < error
    assert failed.sum() <= MOST
    assert not zero_one or failed.sum() > 0  # Clopper and Pearson's limit is not loose


def test_coverage_with_several_priors():
    """The best of three priors for each client, paid for by a union."""
    n, empirical, _, true, q, _ = simulate(np.random.default_rng(6), CLIENTS)
    grid = []
    for taste in (-5.0, 0.0, 5.0):  # priors that like good, all or bad predictors
        prior = np.exp(taste * ERRORS) / np.exp(taste * ERRORS).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            kl = np.where(q > 0, q * np.log(q / prior), 0).sum(1)
        grid.append(pac_bayes(empirical, kl, n, DELTA / 3))
    assert (best_of(grid).bound < true).sum() <= MOST
