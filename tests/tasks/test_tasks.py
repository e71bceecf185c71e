"""Federations of every task: what learns, what is inferred, what is refused."""

import inspect

import clients_with_targets as clients
import jax
import numpy as np
import pytest

from pflalign_jax import algorithms, federate, models, summarise, tasks
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.base import TASK_NAMES
from pflalign_jax.datasets.queries import client_label_counts
from pflalign_jax.messages.attacks import label_flip

CLASSES_ONLY = tuple(
    n for n in algorithms.NAMES
    if "loss" not in inspect.signature(getattr(algorithms, n)).parameters
)  # fmt: skip
# FedBN needs a model with normalisation; it is FedPer with another choice of what stays local.
OTHER_MODELS = ("fedbn", "ffa_lora", "fedsa_lora", "rolora", "flora")
OTHERS = tuple(n for n in algorithms.NAMES if n not in (*CLASSES_ONLY, *OTHER_MODELS))
SHORT = ("pflalign", "fedala", "scaffold")
"""One of each kind of local training; the others take the loss in the same way."""
ONE_DEVICE = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))


def make(name, task, dataset, rate=0.05):
    """Return an algorithm that learns the task, and its model."""
    model = models.mlp(task.num_outputs(dataset), hidden=(8,))
    supplied = {
        "model": model,
        "learning_rate": rate,
        "loss": task.loss(model),
        "num_classes": 2,
        "num_clients": dataset.num_clients,
    }
    factory = getattr(algorithms, name)
    takes = inspect.signature(factory).parameters
    return factory(**{k: v for k, v in supplied.items() if k in takes}), model


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in SHORT else pytest.mark.slow) for n in OTHERS],
)
def test_every_algorithm_that_needs_no_classes_learns_a_regression(name):
    dataset = clients.dataset(clients.numbers)
    task = tasks.regression(dataset)
    algorithm, model = make(name, task, dataset)
    federation = federate(algorithm, model, dataset, task=task, mesh=ONE_DEVICE)
    _, result = federation.run_round(federation.init(jax.random.key(0)), score=True)
    found = result.adapted["test/personal/adapted"]
    assert np.isfinite(found.values["rmse"]).all() and np.isfinite(found.loss).all()


@pytest.mark.parametrize("kind", ["regression", "binary", "multilabel"])
def test_tasks_are_learnt(kind):
    targets = {
        "regression": clients.two_numbers,
        "binary": clients.rare_events,
        "multilabel": clients.three_labels,
    }
    dataset = clients.dataset(targets[kind])
    task = tasks.regression(dataset) if kind == "regression" else tasks.TASKS[kind]()
    algorithm, model = make("pflalign", task, dataset, rate=3.0)
    federation = federate(algorithm, model, dataset, task=task, mesh=ONE_DEVICE)
    state = federation.init(jax.random.key(0))
    losses = []
    for _ in range(15):
        state, result = federation.run_round(state, score=True)
        losses.append(summarise(result.adapted)["loss/test/personal/adapted/mean"])
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", CLASSES_ONLY)
def test_algorithms_that_need_classes_refuse_other_tasks_by_name(name):
    dataset = clients.dataset(clients.rare_events)
    algorithm, model = make(name, tasks.binary(), dataset)
    with pytest.raises(ValueError, match=rf"{name} works with classes.*task 'binary'"):
        federate(algorithm, model, dataset, task=tasks.binary())


def test_a_loss_that_does_not_fit_is_refused_and_not_trained_with():
    dataset = clients.dataset(clients.rare_events)
    model = models.logistic(1)
    federation = federate(algorithms.fedavg(model), model, dataset, task=tasks.binary())
    with pytest.raises(ValueError, match=r"pass loss=task.loss\(model\)"):
        federation.run_round(federation.init(jax.random.key(0)))


def test_standardised_targets_keep_their_units():
    dataset = clients.dataset(clients.numbers)
    task = tasks.regression(dataset)
    train = dataset.y[dataset.splits["train"].indices]
    zero = np.zeros((2, 1), np.float32)
    np.testing.assert_allclose(task.predict(task.of_model(zero)), train.mean(), rtol=1e-6)
    one_off = np.array([train.mean() + train.std()] * 2, np.float32)
    np.testing.assert_allclose(task.example_losses(task.of_model(zero), one_off), 1, rtol=1e-5)


def test_what_is_inferred_from_y():
    assert tasks.infer_task(clients.dataset(clients.three_classes, 3)).name == "classification"
    assert tasks.infer_task(clients.dataset(clients.numbers)).name == "regression"
    text = clients.dataset(clients.three_labels, 2)
    text = text._replace(x=np.zeros((len(text.y), 3), np.int32))
    assert tasks.infer_task(text).name == "next_token"


def test_the_task_of_the_data_comes_before_what_is_inferred():
    assert tuple(tasks.TASKS) == TASK_NAMES  # the names that loaders and checks know
    whole = clients.dataset(lambda x, client, rng: np.round(x[:, 0]).astype(np.float32))
    assert tasks.infer_task(whole._replace(task="regression")).name == "regression"
    labels = clients.dataset(clients.three_labels)._replace(task="multilabel")
    assert tasks.infer_task(labels).name == "multilabel"
    with pytest.raises(DatasetError, match=r"task='ranking' is unknown; choose from .*'binary'"):
        tasks.infer_task(labels._replace(task="ranking"))


def test_what_is_in_doubt_is_refused():
    dataset = clients.dataset(clients.numbers)
    whole = dataset._replace(y=np.round(dataset.y))
    with pytest.raises(DatasetError, match=r"different whole numbers.*say task='regression'"):
        tasks.infer_task(whole)
    with pytest.raises(DatasetError, match="say task='multilabel' or task='classification'"):
        tasks.infer_task(clients.dataset(clients.three_labels))


def broken(dataset, value):
    y = dataset.y.copy()
    y.flat[5] = value
    return dataset._replace(y=y)


@pytest.mark.parametrize(
    ("task", "dataset", "message"),
    [
        ("classification", broken(clients.dataset(clients.three_classes, 3), 7), "label 7 of exam"),
        ("classification", broken(clients.dataset(clients.three_classes, 3), -1), r"outside 0..2"),
        ("classification", clients.dataset(clients.numbers), "y is float32"),
        ("binary", broken(clients.dataset(clients.rare_events), -1), "label -1 of example 5"),
        ("binary", clients.dataset(clients.three_labels), r"shape \[N\]; it is"),
        ("multilabel", clients.dataset(clients.rare_events), r"shape \[N, L\]; it is"),
        ("regression", broken(clients.dataset(clients.numbers), np.nan), "target nan of example 5"),
        ("next_token", clients.dataset(clients.rare_events), "needs y of shape"),
    ],
)
def test_targets_that_do_not_fit_are_refused_with_example_and_value(task, dataset, message):
    made = tasks.TASKS[task]()
    model = models.logistic(3)
    with pytest.raises(DatasetError, match=message):
        federate(algorithms.fedavg(model), model, dataset, task=made)


def test_a_model_with_other_outputs_is_refused():
    dataset, model = clients.dataset(clients.numbers), models.logistic(3)
    with pytest.raises(ValueError, match="3 outputs, but task 'regression' needs 1"):
        federate(algorithms.fedavg(model), model, dataset)


def test_what_goes_by_labels_refuses_numbers():
    dataset = clients.dataset(clients.numbers)
    with pytest.raises(DatasetError, match="no labels to count"):
        client_label_counts(dataset)
    with pytest.raises(ValueError, match="label_flip needs labels"):
        label_flip(dataset, np.array([0]))
    examples = Examples("prices", dataset.x, dataset.y, 0)
    with pytest.raises(DatasetError, match=r"partition='dirichlet' goes by labels.*float32"):
        partition_examples(examples, partition="dirichlet", num_clients=3)
    # Without a partition's name: by numbers of examples alone, targets spread evenly.
    assert partition_examples(examples, num_clients=3).options["partition"] == "iid"


def test_metrics_and_headlines_by_name():
    with pytest.raises(ValueError, match="has the metric 'auc' already"):
        tasks.binary().with_metrics(tasks.metrics.auc)
    with pytest.raises(ValueError, match="no metric 'mae'"):
        tasks.binary().with_headline("mae")
