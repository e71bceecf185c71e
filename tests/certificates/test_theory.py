"""The equations of docs/theory.md, by numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax import align_transform, preconditioner
from pflalign_jax.align import removed
from pflalign_jax.certificates import gaussian_kl

RNG = np.random.default_rng(0)


def test_1_and_3_the_price_of_directions_and_their_common_centre():
    local, shares, s = RNG.normal(size=(4, 6)), np.array([0.1, 0.2, 0.3, 0.4]), 0.7

    def price(w):
        return sum(p * gaussian_kl({"w": v}, {"w": w}, {"w": s}) for p, v in zip(
            shares, local, strict=True))  # fmt: skip

    assert gaussian_kl({"w": local[0]}, {"w": local[1]}, {"w": s}) == pytest.approx(
        ((local[0] - local[1]) ** 2).sum() / (2 * s**2)
    )
    centre = shares @ local
    assert all(price(centre) < price(centre + 0.01 * RNG.normal(size=6)) for _ in range(20))


def test_4_shrinkage_that_minimises_the_error_of_a_step():
    mu, sigma = 0.5, 1.5
    g = mu + sigma * RNG.normal(size=1_000_000)
    best = mu**2 / (mu**2 + sigma**2)
    errors = {c: np.mean((c * g - mu) ** 2) for c in (0.0, best - 0.05, best, best + 0.05, 1.0)}
    assert min(errors, key=errors.get) == best
    assert errors[best] == pytest.approx(mu**2 * sigma**2 / (mu**2 + sigma**2), rel=0.01)
    assert errors[0.0] == pytest.approx(mu**2) and errors[1.0] == pytest.approx(sigma**2, rel=0.01)
    assert np.mean(g) ** 2 / np.mean(g**2) == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.1 / 1.9), (1e6, 1.0)])
def test_5_preconditioner_of_noise_and_of_signal(mean, expected):
    """The ratio of averages over many coordinates, whose mean is what (5) speaks of."""
    tx = align_transform(beta=0.9)
    noise = jnp.asarray(RNG.normal(size=(300, 4000)), jnp.float32)

    def step(state, g):
        _, state = tx.update(g, state)
        return state, None

    state, _ = jax.lax.scan(step, tx.init(jnp.zeros(4000)), mean + noise)
    assert float(state.u.mean() / state.v.mean()) == pytest.approx(expected, rel=0.05)
    if mean:
        assert float(preconditioner(state).mean()) == pytest.approx(1, rel=1e-3)


def test_6_noise_in_the_direction():
    steps, eta, c, sigma = 20, 0.1, 0.3, 2.0
    g = 0.7 + sigma * RNG.normal(size=(100_000, steps))
    away = (eta * c * (g - 0.7)).sum(1)
    assert np.mean(away**2) == pytest.approx(steps * (eta * c * sigma) ** 2, rel=0.02)


def test_7_gamma_is_the_probability_that_descent_undoes_the_direction():
    for m, delta in ((0.3, 1.0), (-0.3, 1.0), (0.8, -0.5), (0.0, 1.0)):
        v = 0.5 + m**2
        g = m + np.sqrt(v - m**2) * RNG.normal(size=200_000)
        probability = np.mean(g * delta > 0)
        gamma = removed("probability", jnp.float32(m), jnp.float32(v), 1e-12, jnp.float32(delta))
        assert float(gamma / delta) == pytest.approx(probability, abs=0.005)
    # A constant γ leaves (1 - γ) of the direction, and (1 - γ)² of its price.
    left = 1.0 - sum(0.25 / 8 for _ in range(8))
    assert gaussian_kl({"w": np.full(3, left)}, {"w": np.zeros(3)}, {"w": 1.0}) == pytest.approx(
        0.75**2 * gaussian_kl({"w": np.ones(3)}, {"w": np.zeros(3)}, {"w": 1.0})
    )
