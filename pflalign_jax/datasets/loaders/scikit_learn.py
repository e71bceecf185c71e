"""Small data of other tasks, bundled with scikit-learn: numbers, two labels, several labels."""

from typing import Any

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.digits import SOURCE as DIGITS
from pflalign_jax.datasets.loaders.digits import load_digits
from pflalign_jax.datasets.loaders.sources import Source

DIABETES = Source(
    name="diabetes",
    title="Progression of diabetes after one year, 442 patients, bundled with scikit-learn",
    homepage="https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
    licence="not stated",
    citation="Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression, Ann. Statist., 2004",
    files=(),
    counts={"all": 442},
    classes=0,
    clients=10,
)

BREAST_CANCER = Source(
    name="breast_cancer",
    title="Malignant and benign tumours of the breast, 569 images, bundled with scikit-learn",
    homepage="https://archive.ics.uci.edu/dataset/17",
    licence="CC BY 4.0",
    citation="Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic), UCI, "
    "1993",
    files=(),
    counts={"all": 569},
    classes=2,
    clients=10,
)

DIGITS_ATTRIBUTES = DIGITS._replace(
    name="digits_attributes", title="Attributes of scikit-learn's digits", classes=0
)

ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "at_least_5": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "closed_loop": (0, 6, 8, 9),
    "multiple_of_3": (0, 3, 6, 9),
}
"""Name of each label of `load_digits_attributes`, in the order of ``y``, to its digits."""

GROUPS = 10
"""Clients into which patients are grouped by a column."""


def load_diabetes(client_column: str = "age") -> Examples:
    """Read the progression of diabetes: ``x [442, 10]``, ``y [442]`` float32, 25 to 346.

    Features are in their own units (age in years, ...), of very different size: use
    ``normalise="train"``. The task is regression.

    Args:
      client_column: the feature by which patients are grouped into clients, each with about a tenth
        of them: ``"age"``, ``"bmi"``, ``"bp"`` and others. Clients differ little in y by age, and
        much by bmi. It stays a feature.

    Raises:
      DatasetError: for another column, with those that there are.
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_diabetes(scaled=False)
    owner = _groups(bunch, client_column, "diabetes")
    x, y = bunch.data.astype(np.float32), bunch.target.astype(np.float32)
    names = tuple(bunch.feature_names)
    return Examples("diabetes", x, y, 0, owner, task="regression", feature_names=names)


def load_breast_cancer(client_column: str = "mean symmetry") -> Examples:
    """Read tumours of the breast: ``x [569, 30]`` of cells' nuclei, ``y [569]`` 1 if malignant.

    212 of 569 are malignant. Scikit-learn's own target is the other way round, 0 for malignant; 1
    is here what a test looks for. Features are of very different size: use ``normalise="train"``.
    The task is binary.

    Args:
      client_column: the feature by which tumours are grouped into clients, each with about a tenth
        of them. By ``"mean symmetry"`` each client has both labels, 9 to 70 % malignant; by
        ``"mean radius"`` and others some have one label only, and no AUC. It stays a feature.

    Raises:
      DatasetError: for another column, with those that there are.
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_breast_cancer()
    owner = _groups(bunch, client_column, "breast_cancer")
    x, y = bunch.data.astype(np.float32), (1 - bunch.target).astype(np.int32)
    examples = Examples("breast_cancer", x, y, 2, owner, task="binary")
    return examples._replace(
        class_names=("benign", "malignant"), feature_names=tuple(map(str, bunch.feature_names))
    )


def load_digits_attributes() -> Examples:
    """Read the digits with five labels of 0 or 1 each: ``x`` as `load_digits`, ``y [1797, 5]``.

    The labels are those of `ATTRIBUTES`. They are derived from the digit and nothing else, so this
    is no more than the digits asked in another way: to try out the task multilabel.
    """
    examples = load_digits()
    y = np.stack([np.isin(examples.y, digits) for digits in ATTRIBUTES.values()], axis=1)
    return examples._replace(
        name="digits_attributes", y=y.astype(np.int32), num_classes=0, task="multilabel",
        class_names=tuple(ATTRIBUTES),
    )  # fmt: skip


def _groups(bunch: Any, column: str, dataset: str) -> np.ndarray:
    """Return ``[N]`` names of groups of about equal size by a column: ``"age 19-29"``."""
    names = list(bunch.feature_names)
    if column not in names:
        raise DatasetError(f"{dataset}: client_column={column!r} is unknown; choose from {names}")
    values = bunch.data[:, names.index(column)]
    # The same value is always in the same group, so sizes differ a little.
    edges = np.unique(np.quantile(values, np.arange(1, GROUPS) / GROUPS))
    group = np.searchsorted(edges, values, side="right")
    titles = {}
    for g in np.unique(group).tolist():
        inside = values[group == g]
        titles[g] = f"{column} {inside.min():.4g}-{inside.max():.4g}"
    return np.array([titles[g] for g in group.tolist()])
