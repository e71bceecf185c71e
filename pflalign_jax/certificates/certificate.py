"""Certificates from means of losses: PAC-Bayes and held-out, of each client and of all together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pflalign_jax.certificates.bounds import (
    check_delta,
    chernoff_kl,
    clopper_pearson,
    kl_inverse,
    log_xi,
)

DRAWS_SHARE = 0.2
"""Part of delta that is spent on the Monte Carlo estimate of the posterior's loss."""

MOST_DELTA_POOLED = 0.25
"""The largest delta of a pooled limit of Clopper and Pearson; see `pooled_holdout`."""

PAC_BAYES, HOLDOUT = "pac_bayes", "holdout"
"""Kinds of certificates."""


class Certificate(NamedTuple):
    """An upper bound on the true mean loss, which holds with probability at least ``1 - delta``.

    Numbers, or arrays ``[K]`` of clients: then delta is that of each alone. To be sure of all K at
    once, use a delta K times smaller.

    Attributes:
      bound: in [0, 1], on the loss of the randomised predictor (``"pac_bayes"``, a new model drawn
        for every prediction) or of the model itself (``"holdout"``).
      empirical: the mean loss on the bound sample.
      kl: of the posterior and the prior in nats; 0 of a held-out bound.
      n: examples of the bound sample.
      delta: the probability with which the bound may be too low, Monte Carlo included.
      kind: ``"pac_bayes"`` or ``"holdout"``.
      why_valid: what it rests on, one sentence.
    """

    bound: Any
    empirical: Any
    kl: Any
    n: Any
    delta: float
    kind: str
    why_valid: str


def pac_bayes(
    empirical: ArrayLike,
    kl: ArrayLike,
    n: ArrayLike,
    delta: float = 0.05,
    *,
    draws: int | None = None,
    shared_draws: bool = False,
    why_valid: str = "the prior does not depend on the bound sample, whose examples are i.i.d.",
) -> Certificate:
    r"""Return the PAC-Bayes-kl certificate of a randomised predictor.

    With the mean loss $\hat R$ of the posterior on n examples,

    $$R \le \operatorname{kl}^{-1}\!\big(\hat R, (\mathrm{KL} + \ln(\xi(n) / \delta)) / n\big)$$

    for all posteriors at once: to choose one by its bound costs nothing. To choose the prior's
    scale does; see `best_of`.

    Args:
      empirical: mean loss on the bound sample, in [0, 1], a number or ``[K]``.
      kl: divergence of posterior and prior, >= 0, e.g. of `gaussian_kl`.
      n: examples of the bound sample, >= 1.
      delta: in (0, 1).
      draws: ``empirical`` is an estimate: the mean over so many draws of weights for each example.
        A part `DRAWS_SHARE` of delta is then for the estimate itself. None: it is exact.
      shared_draws: whether all examples shared the same ``draws`` weights. Then they are as many
        independent numbers as there are draws, else n times as many: far tighter.
      why_valid: what the caller knows about prior and sample.

    Raises:
      ValueError: for an argument out of range.

    References:
      Maurer, arXiv:cs/0411099, Theorem 5; Langford and Caruana, NIPS 2001, for the estimate.

    >>> print(f"{pac_bayes(0.05, kl=9.0, n=1000, draws=10).bound:.3f}")
    0.108
    """
    check_delta("pac_bayes", delta)
    _at_least("pac_bayes", "kl", kl, 0)
    _at_least("pac_bayes", "n", n, 1)
    empirical, kl, n = np.broadcast_arrays(*(np.asarray(a, float) for a in (empirical, kl, n)))
    mean, delta_bound = empirical, delta
    if draws is not None:
        _at_least("pac_bayes", "draws", draws, 1)
        trials = np.full_like(n, draws) if shared_draws else n * draws
        delta_bound = (1 - DRAWS_SHARE) * delta
        mean = chernoff_kl(empirical, trials, DRAWS_SHARE * delta)
    # The logarithm of a size is the same for all clients that have it.
    xi = {size: log_xi(int(size)) for size in np.unique(n)}
    logs = np.vectorize(xi.__getitem__, otypes=[float])(n)
    bound = kl_inverse(mean, (kl + logs - np.log(delta_bound)) / n)
    return Certificate(bound, empirical, kl, n.astype(int), delta, PAC_BAYES, why_valid)


def pooled_pac_bayes(
    empirical: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: float = 0.05, **options: Any
) -> Certificate:
    r"""Return one certificate for the mean loss of K clients, weighted by their examples.

    $$\operatorname{kl}\!\Big(\tfrac1N \sum_i n_i \hat R_i \,\Big\|\, \tfrac1N \sum_i n_i R_i\Big)
    \le \frac{\sum_i \mathrm{KL}_i + \ln(\xi(N)/\delta)}{N}$$

    for independent bound samples, if no client's prior depends on the sample of any client. Derived
    in ``docs/theory.md``.

    Args:
      empirical, kl, n: ``[..., K]``, as in `pac_bayes`; pooled over the last axis.
      delta, options: as there.
    """
    n = np.asarray(n, float)
    total = n.sum(-1)
    mean = np.sum(n * np.asarray(empirical, float), -1) / total
    return pac_bayes(mean, np.sum(kl, -1), total, delta, **options)


def holdout(
    losses: ArrayLike,
    n: ArrayLike,
    delta: float = 0.05,
    *,
    zero_one: bool = True,
    why_valid: str = "the model was trained and chosen without the bound sample, which is i.i.d.",
) -> Certificate:
    """Return the certificate of a model by examples that it was never trained on.

    Args:
      losses: sum of the losses on the bound sample; of 0/1 losses the number of errors. A number or
        ``[K]``.
      n: examples of the bound sample, >= 1.
      delta: in (0, 1).
      zero_one: True: `clopper_pearson`; False, for other losses in [0, 1]: `chernoff_kl`.
      why_valid: what the caller knows about model and sample.

    Raises:
      ValueError: for an argument out of range.

    >>> print(f"{holdout(3, 100).bound:.4f} {holdout(3, 100, zero_one=False).bound:.4f}")
    0.0757 0.0913
    """
    check_delta("holdout", delta)
    _at_least("holdout", "n", n, 1)
    losses, n = np.broadcast_arrays(np.asarray(losses, float), np.asarray(n, float))
    mean = losses / n
    limit = clopper_pearson(losses, n, delta) if zero_one else chernoff_kl(mean, n, delta)
    return Certificate(limit, mean, np.zeros_like(mean), n.astype(int), delta, HOLDOUT, why_valid)


def pooled_holdout(
    losses: ArrayLike, n: ArrayLike, delta: float = 0.05, *, zero_one: bool = True, **options: Any
) -> Certificate:
    """Return one held-out certificate for the mean loss of K clients, weighted by their examples.

    Errors of different clients are independent, but of different probabilities. Hoeffding (1956)
    shows that such a sum is below a number under its mean at most as often as a binomial one; so
    the limit of Clopper and Pearson holds up to a delta of `MOST_DELTA_POOLED`, if a limit above
    ``1 - 1/N`` is replaced by 1 (``docs/theory.md``).

    Args:
      losses, n: ``[..., K]``, as in `holdout`; pooled over the last axis.
      delta, zero_one, options: as there.

    Raises:
      ValueError: for an argument out of range.
    """
    if zero_one and delta > MOST_DELTA_POOLED:
        raise ValueError(
            f"pooled_holdout: delta={delta} is not allowed; it must be <= {MOST_DELTA_POOLED}"
        )
    total = np.sum(np.asarray(n, float), -1)
    found = holdout(np.sum(losses, -1), total, delta, zero_one=zero_one, **options)
    if zero_one:
        found = found._replace(bound=np.where(found.bound > 1 - 1 / total, 1.0, found.bound))
    return found


def best_of(certificates: Sequence[Certificate]) -> Certificate:
    """Return the lowest of several certificates, for each client: a union over what was tried.

    Their deltas add up; to end with delta, make each of G with ``delta / G``.

    Args:
      certificates: of the same clients and the same kind, e.g. for a grid of the prior's scales.
    """
    best = np.argmin([c.bound for c in certificates], axis=0)

    def chosen(name: str) -> np.ndarray:
        columns = np.stack([np.asarray(getattr(c, name)) for c in certificates])
        return np.take_along_axis(columns, best[None], axis=0)[0]

    fields: dict[str, Any] = {name: chosen(name) for name in ("bound", "empirical", "kl", "n")}
    return certificates[0]._replace(**fields, delta=sum(c.delta for c in certificates))


def _at_least(function: str, name: str, value: ArrayLike, least: float) -> None:
    """Raise ValueError unless all values are >= ``least``; NaN never is."""
    values = np.asarray(value, float)
    if not np.all(values >= least):
        raise ValueError(
            f"{function}: {name}={values[~(values >= least)].flat[0]} is not allowed; it must be "
            f">= {least}"
        )
