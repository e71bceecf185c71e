"""The data of other tasks that scikit-learn ships."""

import numpy as np
import pytest

from pflalign_jax import datasets, tasks
from pflalign_jax.datasets import SPLITS, DatasetError
from pflalign_jax.datasets.loaders.scikit_learn import ATTRIBUTES, load_breast_cancer, load_diabetes
from pflalign_jax.datasets.queries import client_label_counts


def test_diabetes():
    data = datasets.diabetes(normalise="train")
    assert data.x.shape == (442, 10) and data.x.dtype == data.y.dtype == np.float32
    assert data.y[:3].tolist() == [151, 75, 141] and data.num_classes == 0
    assert data.client_names[[0, 9]].tolist() == ["age 19-29", "age 66-79"]
    assert data.task == "regression" == tasks.infer_task(data).name
    assert len(datasets.SOURCES["diabetes"].citation) > 50
    sizes = {split: data.splits[split].sizes for split in SPLITS}
    assert sum(sizes.values()).sum() == 442
    assert [sizes[split].min() for split in SPLITS] == [20, 3, 8]
    for k in range(10):
        ages = [data.x[data.splits[split].of_client(k), 0] for split in SPLITS]
        low, high = map(int, data.client_names[k].split()[1].split("-"))
        assert np.concatenate(ages).min() == low and np.concatenate(ages).max() == high


def test_clients_by_another_column():
    data = datasets.diabetes(client_column="bmi")
    y = [data.y[data.splits["train"].of_client(k)].mean() for k in range(10)]
    assert data.client_names[0].startswith("bmi 18-") and y[9] > 2 * y[0]
    assert any("normalise='train'" in note for note in data.notes)
    assert datasets.diabetes(client_column="sex").num_clients == 2
    with pytest.raises(DatasetError, match=r"client_column='height' is unknown.*'age', 'sex'"):
        load_diabetes("height")
    with pytest.raises(DatasetError, match="breast_cancer: client_column='age' is unknown"):
        load_breast_cancer("age")


def test_breast_cancer():
    data = datasets.breast_cancer()
    assert data.x.shape == (569, 30) and data.y.dtype == np.int32 and data.y.sum() == 212
    assert data.y[0] == 1 and data.x[0, 0] == np.float32(17.99)  # a large one, malignant
    assert data.num_clients == 10 and data.num_classes == 2
    assert data.task == "binary" == tasks.infer_task(data).name
    assert (client_label_counts(data) >= 5).all()
    for split in ("train", "test"):
        for k in range(10):
            assert set(data.y[data.splits[split].of_client(k)]) == {0, 1}
    assert any("normalise='train'" in note for note in data.notes)


def test_digits_attributes():
    data, digits = datasets.digits_attributes(alpha=0.5), datasets.digits().y
    assert data.y.shape == (1797, 5) and data.y.dtype == np.int32 and data.num_classes == 0
    assert data.task == "multilabel" == tasks.infer_task(data).name
    assert data.options["partition"] == "dirichlet" and data.options["split_by"] == "random"
    for j, which in enumerate(ATTRIBUTES.values()):
        np.testing.assert_array_equal(data.y[:, j] == 1, np.isin(digits, which))
    # Dealt by all labels together: by the first alone, all even digits would go the same way.
    data = datasets.digits_attributes(partition="pathological", classes_per_client=1, num_clients=9)
    for k in range(9):
        assert len(np.unique(data.y[data.splits["train"].of_client(k)], axis=0)) == 1
    # How many examples of each client have each of the labels.
    counts = client_label_counts(data)
    assert counts.shape == (9, 5)
    np.testing.assert_array_equal(counts.sum(0), data.y.sum(0))
    with pytest.raises(DatasetError, match="label_shift='swap' needs two labels"):
        datasets.digits_attributes(label_shift="swap")


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "digits_attributes"])
def test_what_is_complete(name):
    data, source = getattr(datasets, name)(), datasets.SOURCES[name]
    assert source.counts == {"all": len(data.y)} and source.classes == data.num_classes
    assert source.clients in (None, data.num_clients) and source.licence
