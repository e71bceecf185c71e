"""Wilson's interval against numbers of scipy, and its arguments."""

import pytest

from pflalign_jax.runs.intervals import wilson


@pytest.mark.parametrize(
    ("right", "examples", "level", "interval"),
    [
        (0, 2, 0.95, (0.0, 0.65762)),
        (1, 5, 0.95, (0.036224, 0.624465)),
        (1, 5, 0.8, (0.061896, 0.486459)),
        (46, 49, 0.95, (0.834795, 0.97896)),
        (3, 3, 0.8, (0.646221, 1.0)),
    ],
)
def test_it_is_that_of_scipy(right, examples, level, interval):
    """Of ``scipy.stats.binomtest(...).proportion_ci(level, method="wilson")``."""
    assert wilson(right / examples, examples, level) == pytest.approx(interval, abs=1e-6)


def test_values_out_of_range_are_refused():
    for arguments, message in (
        ((1.1, 5), "rate=1.1"), ((0.5, 0), "examples=0"), ((0.5, 5, 1.0), "level=1.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"wilson: {message} is not allowed"):
            wilson(*arguments)
