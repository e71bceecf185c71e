r"""Upper bounds on a mean of losses in [0, 1], on the host in float64.

With $\operatorname{kl}(q \| p) = q \ln \frac qp + (1-q) \ln \frac{1-q}{1-p}$, all of them are
$\operatorname{kl}^{-1}(q, c) = \sup \{p \ge q : \operatorname{kl}(q \| p) \le c\}$ for some $c$,
or for counts of errors the limit of Clopper and Pearson.
"""

import functools

import numpy as np
from numpy.typing import ArrayLike

BISECTIONS = 60
"""Halvings of an interval of at most 1: its rest is below the spacing of float64 near 1."""

EXACT_UP_TO = 100_000
"""Examples up to which ``ln ξ(n)`` is summed; beyond, its bound ln 2√n is as good as the sum."""


def binary_kl(q: ArrayLike, p: ArrayLike) -> np.ndarray:
    """Return ``kl(q || p)`` of two Bernoulli distributions in nats, elementwise.

    Args:
      q, p: probabilities, which broadcast. It is infinite where p says that q is impossible.
    """
    q, p = np.asarray(q, float), np.asarray(p, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ones = np.where(q > 0, q * np.log(q / p), 0.0)
        zeros = np.where(q < 1, (1 - q) * (np.log1p(-q) - np.log1p(-p)), 0.0)
    return ones + zeros


def kl_inverse(q: ArrayLike, c: ArrayLike) -> np.ndarray:
    """Return ``sup {p >= q : kl(q || p) <= c}``, elementwise, rounded up.

    Args:
      q: means of losses, in [0, 1].
      c: >= 0, in nats; both broadcast. Where c is infinite the bound is 1.

    Raises:
      ValueError: for a mean outside [0, 1], or c that is negative or NaN.

    >>> print(f"{kl_inverse(0.0, 0.05):.6f} {kl_inverse(0.1, 0.05):.6f}")
    0.048771 0.220079
    """
    q, c = np.broadcast_arrays(np.asarray(q, float), np.asarray(c, float))
    _check("kl_inverse", "q", q, (q >= 0) & (q <= 1), "in [0, 1]")
    _check("kl_inverse", "c", c, c >= 0, ">= 0")
    low, high = q.copy(), np.ones_like(q)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = binary_kl(q, middle) <= c
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    # The upper end, and a little more than the rounding of kl itself, which is that of a sum of
    # terms of at most 1: a bound must not be too small.
    return np.minimum(high + 1e-15 + 1e-12 * high, 1.0)


@functools.lru_cache(maxsize=4096)
def log_xi(n: int, exact: bool | None = None) -> float:
    r"""Return $\ln \xi(n)$, $\xi(n) = \sum_k \binom nk (k/n)^k (1-k/n)^{n-k}$.

    Maurer's constant of the PAC-Bayes-kl bound, $\sqrt n \le \xi(n) \le 2 \sqrt n$.

    Args:
      n: examples, >= 1.
      exact: False: its bound $\ln 2\sqrt n$; None: the sum, up to `EXACT_UP_TO` examples.

    Raises:
      ValueError: if n is below 1.

    References:
      Maurer, "A note on the PAC-Bayesian theorem", arXiv:cs/0411099, Theorem 1.

    >>> print(f"{log_xi(100):.3f} {log_xi(100, exact=False):.3f}")
    2.581 2.996
    """
    if n < 1:
        raise ValueError(f"log_xi: n={n} is not allowed; it must be >= 1")
    if exact is False or (exact is None and n > EXACT_UP_TO):
        return float(np.log(2) + 0.5 * np.log(n))
    from scipy.special import gammaln, logsumexp, xlogy

    k = np.arange(n + 1.0)
    terms = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    terms += xlogy(k, k / n) + xlogy(n - k, 1 - k / n)
    return float(logsumexp(terms))


def clopper_pearson(errors: ArrayLike, n: ArrayLike, delta: float) -> np.ndarray:
    """Return the upper limit of Clopper and Pearson on a probability of error, elementwise.

    Args:
      errors: how many of ``n`` independent examples were wrong.
      n: examples, >= 1.
      delta: the probability, in (0, 1), with which the limit may be too low.

    Raises:
      ValueError: for errors that are not whole numbers in 0..n, and n or delta out of range.

    References:
      Clopper and Pearson, Biometrika 26 (1934), pages 404-413.

    >>> print(f"{clopper_pearson(3, 100, 0.05):.4f}")
    0.0757
    """
    check_delta("clopper_pearson", delta)
    errors, n = np.broadcast_arrays(np.asarray(errors, float), np.asarray(n, float))
    _check("clopper_pearson", "n", n, n >= 1, ">= 1")
    whole = (errors >= 0) & (errors <= n) & (errors == np.round(errors))
    _check("clopper_pearson", "errors", errors, whole, "whole numbers in 0..n")
    from scipy.special import betaincinv

    limit = betaincinv(errors + 1, np.maximum(n - errors, 1), 1 - delta)
    return np.where(errors == n, 1.0, np.minimum(limit * (1 + 1e-9), 1.0))


def chernoff_kl(mean: ArrayLike, n: ArrayLike, delta: float) -> np.ndarray:
    """Return ``kl⁻¹(mean, ln(1/δ) / n)``: a bound on the expectation of a mean of ``n`` losses.

    The losses lie in [0, 1] and are independent; they need not be of one distribution (Hoeffding
    1963, Theorem 1). One-sided, so it is ln(1/δ) and not ln(2/δ).

    Args:
      mean: of the losses, in [0, 1].
      n: how many they are, >= 1.
      delta: the probability, in (0, 1), with which the bound may be too low.

    Raises:
      ValueError: for an argument out of range.
    """
    check_delta("chernoff_kl", delta)
    n = np.asarray(n, float)
    _check("chernoff_kl", "n", n, n >= 1, ">= 1")
    return kl_inverse(mean, np.log(1 / delta) / n)


def check_delta(function: str, delta: float) -> None:
    """Raise ValueError unless ``delta`` is in (0, 1)."""
    if not 0 < delta < 1:
        raise ValueError(f"{function}: delta={delta} is not allowed; it must be in (0, 1)")


def _check(function: str, name: str, value: np.ndarray, fine: np.ndarray, what: str) -> None:
    """Raise ValueError with the first value that is not fine; NaN never is."""
    if not np.all(fine):
        bad = value[~fine].flat[0] if value.ndim else value
        raise ValueError(f"{function}: {name}={bad} is not allowed; it must be {what}")
