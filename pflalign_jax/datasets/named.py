"""The datasets by name: every function loads examples and deals them out to clients.

All take the keyword arguments of `pflalign_jax.datasets.deal`.
"""

from typing import Unpack

import numpy as np
import sklearn.datasets

from pflalign_jax.datasets import (
    ag_news as ag_news_files,
)
from pflalign_jax.datasets import cifar, femnist_files, leaf, mnist, shakespeare_files, tables
from pflalign_jax.datasets import nist_writers as nist_files
from pflalign_jax.datasets import synthetic as fedprox
from pflalign_jax.datasets import tiny_imagenet as tiny_files
from pflalign_jax.datasets import uci_har as har_files
from pflalign_jax.datasets.base import Examples, FederatedDataset
from pflalign_jax.datasets.deal import Dealing, deal
from pflalign_jax.datasets.npz_files import load_npz


def digits(**dealing: Unpack[Dealing]) -> FederatedDataset:
    """Return scikit-learn's bundled digits, 1,797 images 8x8x1 in 10 classes, over clients.

    Features are uint8 0..16, normalised to [0, 1].

    References:
      Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (CC BY 4.0).
    """
    bunch = sklearn.datasets.load_digits()
    x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int32)
    return deal(Examples("digits", x, y, 10, mean=0.0, std=16.0), **dealing)
