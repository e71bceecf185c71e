"""How well few examples tell a rate."""

import math
from statistics import NormalDist


def wilson(rate: float, examples: int, level: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's score interval of a probability.

    With z the two-sided quantile of ``level``, $\hat p$ = ``rate`` and n = ``examples``:
    $\frac{1}{1 + z^2/n} \left(\hat p + \frac{z^2}{2n} \pm
    z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}\right)$.

    It covers about as often as it says, also for few examples and rates of 0 and 1; one that never
    covers less often is `pflalign_jax.certificates.clopper_pearson`.

    Args:
      rate: the share of examples that were right, in [0, 1].
      examples: how many there were, >= 1; they are taken to be independent.
      level: how often such an interval covers the probability, in (0, 1).

    Returns:
      Its two ends, in [0, 1].

    Raises:
      ValueError: for an argument out of range.

    References:
      Wilson, Journal of the American Statistical Association 22 (1927), pages 209-212.

    >>> low, high = wilson(1 / 5, 5)
    >>> print(f"{low:.3f} {high:.3f}")
    0.036 0.624
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"wilson: rate={rate} is not allowed; it must be in [0, 1]")
    if examples < 1:
        raise ValueError(f"wilson: examples={examples} is not allowed; it must be >= 1")
    if not 0 < level < 1:
        raise ValueError(f"wilson: level={level} is not allowed; it must be in (0, 1)")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2 / examples
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / 4))
    low, high = ((rate + z2 / 2 + side) / (1 + z2) for side in (-half, half))
    # Of rates 0 and 1 rounding alone would leave a little.
    return (0.0 if rate == 0 else low), (1.0 if rate == 1 else high)
