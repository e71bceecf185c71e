"""What classes and features are called comes from files to the federated dataset."""

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.loaders import ag_news, cifar, mnist, uci_har
from pflalign_jax.datasets.loaders.characters import CHARACTERS
from pflalign_jax.datasets.loaders.labels import mapped_labels, targets
from pflalign_jax.datasets.loaders.tables import load_tables


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (cifar.CIFAR10_CLASSES, 10),
        (cifar.CIFAR100_CLASSES, 100),
        (ag_news.TOPICS, 4),
        (uci_har.ACTIVITIES, 6),
        (mnist.FASHION_CLASSES, 10),
        (CHARACTERS, 62),
        *((mnist.EMNIST_CHARACTERS[v], c) for v, (_, _, c) in mnist.EMNIST_VARIANTS.items()),
    ],
)
def test_known_datasets(names, count):
    assert len(names) == len(set(names)) == count
    assert list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)  # as their labels are


def test_bundled_datasets():
    assert datasets.digits(num_clients=2).class_names == tuple("0123456789")
    data = datasets.breast_cancer()
    assert data.class_names == ("benign", "malignant") and (data.y == 1).sum() == 212
    assert data.feature_names[0] == "mean radius" and len(data.feature_names) == data.x.shape[1]
    assert datasets.digits_attributes(num_clients=2).class_names[:2] == ("even", "at_least_5")
    data = datasets.diabetes()
    assert data.class_names is None and "bmi" in data.feature_names


def test_labels_that_are_mapped_keep_what_they_were_called():
    assert mapped_labels(np.array(["dog", "cat"]), "f").class_names == ("cat", "dog")
    assert mapped_labels(np.array([7, 3, 7]), "f").class_names == ("3", "7")
    assert mapped_labels(np.array([0, 1]), "f").class_names is None
    named = mapped_labels(np.array(["a", "b"]), "f", num_classes=3).class_names
    assert named == ("a", "b", "class 2")
    assert targets(np.array(["0.5", "1"]), "f", "regression").class_names is None


def test_a_table_gives_both_names(tmp_path):
    file = tmp_path / "a.csv"
    lines = [f"{i % 2},{i},{'yn'[i % 2]},{i % 3 % 2},{i % 2}" for i in range(12)]
    file.write_text("\n".join(["client,dose,ill,tired,hot", *lines]))
    data = partition_examples(load_tables(file, "ill", ignore=("tired", "hot")), num_new_clients=1)
    assert data.class_names == data.new_clients.class_names == ("n", "y")
    assert data.feature_names == ("dose",)
    several = load_tables(file, ("hot", "tired"), task="multilabel", ignore=("ill",))
    assert several.class_names == ("hot", "tired") and several.y[1].tolist() == [1, 1]


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", 1), ("a", "b", "c")])
def test_names_that_do_not_fit(names):
    examples = Examples("mine", np.zeros((4, 3), np.float32), np.arange(4) % 2, 2)
    with pytest.raises(DatasetError, match=r"mine: class_names has \d names \('a'.*it must have 2"):
        partition_examples(examples._replace(class_names=names))
