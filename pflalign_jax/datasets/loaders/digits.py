"""Scikit-learn's bundled digits: small enough for tests and first runs, nothing to download."""

import numpy as np

from pflalign_jax.datasets.base import Examples
from pflalign_jax.datasets.loaders.characters import DIGITS
from pflalign_jax.datasets.loaders.sources import Source

SOURCE = Source(
    name="digits",
    title="Handwritten digits, 8x8 grey, bundled with scikit-learn",
    homepage="https://archive.ics.uci.edu/dataset/80",
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
    files=(),
    counts={"all": 1797},
    classes=10,
)


def load_digits() -> Examples:
    """Read the digits: ``x`` uint8 0..16 of shape ``[1797, 8, 8, 1]``, normalised to [0, 1]."""
    import sklearn.datasets  # here, as it takes longer to start than JAX and only digits needs it

    bunch = sklearn.datasets.load_digits()
    x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int32)
    return Examples("digits", x, y, 10, mean=0.0, std=16.0, class_names=DIGITS)
