"""Every metric against scikit-learn's on the same predictions, client by client."""

import itertools
import warnings

import clients_with_targets as clients
import jax
import numpy as np
import pytest
from sklearn import metrics as reference

from pflalign_jax import algorithms, federate, models, summarise, tasks
from pflalign_jax.tasks import metrics

CLASSES = (metrics.balanced_accuracy, metrics.macro_f1, metrics.top_k(2), metrics.brier)


def scored(task, dataset, **options):
    """Return the dataset's clients scored after a round, and the federation and its state."""
    model = models.mlp(task.num_outputs(dataset), hidden=(8,))
    algorithm = algorithms.fedavg(model, 0.05, loss=task.loss(model))
    federation = federate(algorithm, model, dataset, task=task, **{"mesh": mesh(1), **options})
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    return federation.evaluate(state, adapt=False), federation, state


def outputs_of(federation, state, k):
    """Return the global model's outputs on a client's test examples, and their y."""
    dataset, task = federation.dataset, federation.task
    mine = dataset.splits["test"].of_client(k)
    params = jax.tree.map(np.asarray, federation.personal_params(state, k))
    returned = federation.model.apply(params, dataset.x[mine])
    return np.asarray(task.of_model(returned), np.float64), dataset.y[mine]


def compare(task, dataset, expected):
    """Hold each of ``expected``, name to ``f(outputs, y)``, against the clients' values."""
    scores, federation, state = scored(task, dataset)
    found = scores["test/global"]
    for name, function in expected.items():
        for k in range(dataset.num_clients):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn's of clients with one class
                value = function(*outputs_of(federation, state, k))
            assert found.values[name][k] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), (
                name,
                k,
            )
    return scores


def probability(outputs):
    return 1 / (1 + np.exp(-outputs))


def softmax(outputs):
    e = np.exp(outputs - outputs.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def roc_auc(outputs, y):
    labels = y.reshape(outputs.shape)
    kept = [c for c in range(labels.shape[1]) if len(np.unique(labels[:, c])) == 2]
    if not kept:
        return np.nan
    return np.mean([reference.roc_auc_score(labels[:, c], outputs[:, c]) for c in kept])


def test_regression():
    dataset = clients.dataset(clients.numbers)
    scores = compare(
        tasks.regression(dataset),
        dataset,
        {
            "rmse": lambda out, y: reference.root_mean_squared_error(y, out[:, 0]),
            "mae": lambda out, y: reference.mean_absolute_error(y, out[:, 0]),
            "r2": lambda out, y: reference.r2_score(y, out[:, 0]) if len(y) > 1 else np.nan,
        },
    )
    assert summarise(scores)["r2/test/global/without"] == 1  # the client with one test example
    assert "rmse/test/global/without" not in summarise(scores)


def test_regression_of_two_targets():
    dataset = clients.dataset(clients.two_numbers)
    compare(
        tasks.regression(dataset),
        dataset,
        {
            "rmse": lambda out, y: reference.root_mean_squared_error(y, out),
            "mae": lambda out, y: reference.mean_absolute_error(y, out),
            "r2": lambda out, y: reference.r2_score(y, out) if len(y) > 1 else np.nan,
        },
    )


def test_binary():
    dataset = clients.dataset(clients.rare_events)
    scores = compare(
        tasks.binary(),
        dataset,
        {
            "auc": roc_auc,
            "accuracy": lambda out, y: reference.accuracy_score(y, out[:, 0] > 0),
            "balanced_accuracy": lambda out, y: reference.balanced_accuracy_score(y, out[:, 0] > 0),
            "brier": lambda out, y: np.mean((probability(out[:, 0]) - y) ** 2),
            "loss": lambda out, y: reference.log_loss(y, probability(out[:, 0]), labels=[0, 1]),
        },
    )
    owned = dataset.splits["test"]
    labels = [dataset.y[owned.of_client(k)] for k in range(dataset.num_clients)]
    one_class = sum(len(np.unique(y)) < 2 for y in labels)
    found = summarise(scores)
    assert found["auc/test/global/without"] == one_class >= 2
    values = scores["test/global"].values["auc"]
    assert found["auc/test/global/mean"] == pytest.approx(np.nanmean(values))


def test_several_labels():
    dataset = clients.dataset(clients.three_labels)

    def f1(out, y):
        occurs = ((out > 0) | (y > 0)).any(0)
        return reference.f1_score(y[:, occurs], out[:, occurs] > 0, average="macro")

    compare(
        tasks.multilabel(),
        dataset,
        {
            "auc": roc_auc,
            "accuracy": lambda out, y: 1 - reference.hamming_loss(y, out > 0),
            "brier": lambda out, y: np.mean((probability(out) - y) ** 2),
        },
    )
    scores, federation, state = scored(tasks.multilabel(), dataset)
    for k in (0, 6):
        found = scores["test/global"].values["macro_f1"][k]
        assert found == pytest.approx(f1(*outputs_of(federation, state, k)), abs=1e-6)


def test_classes():
    dataset = clients.dataset(clients.three_classes, 3)
    compare(
        tasks.classification().with_metrics(*CLASSES, metrics.calibration_error),
        dataset,
        {
            "accuracy": lambda out, y: reference.accuracy_score(y, out.argmax(1)),
            "balanced_accuracy": lambda out, y: reference.balanced_accuracy_score(y, out.argmax(1)),
            "macro_f1": lambda out, y: reference.f1_score(y, out.argmax(1), average="macro"),
            "top_2": lambda out, y: reference.top_k_accuracy_score(y, out, k=2, labels=[0, 1, 2]),
            "brier": lambda out, y: ((softmax(out) - np.eye(3)[y]) ** 2).sum(1).mean(),
            "loss": lambda out, y: reference.log_loss(y, softmax(out), labels=[0, 1, 2]),
            "calibration_error": calibration_error,
        },
    )


def calibration_error(outputs, y):
    p = softmax(outputs)
    confidence, hits = p.max(1), p.argmax(1) == y
    edges = np.linspace(0, 1, metrics.CALIBRATION_BINS + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        chosen = (confidence > low) & (confidence <= high)
        if chosen.any():
            total += chosen.mean() * abs(confidence[chosen].mean() - hits[chosen].mean())
    return total


@pytest.mark.parametrize("seed", range(3))
def test_auc_with_ties_and_padding(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, 50).astype(np.float32)
    y, mask = rng.integers(0, 2, 50), (np.arange(50) < 37).astype(np.float32)
    ranks = np.asarray(metrics.auc.statistics(scores[:, None], y, mask), float)
    found = metrics.auc.value(ranks[None], np.array([37.0]))
    assert found[0] == pytest.approx(reference.roc_auc_score(y[:37], scores[:37]), abs=1e-12)


def test_auc_of_many_examples_is_exact():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=200_000).astype(np.float32), rng.integers(0, 2, 200_000)
    ranks = metrics.auc.statistics(scores[:, None], y, np.ones(len(y), np.float32))
    found = metrics.auc.value(np.asarray(ranks, float)[None], np.array([len(y)]))
    assert found[0] == pytest.approx(reference.roc_auc_score(y, scores), abs=1e-12)


def test_auc_of_a_model_that_has_diverged_is_a_half():
    y = np.array([0, 1, 1])
    ranks = metrics.auc.statistics(np.full((3, 1), np.nan, np.float32), y, np.ones(3, np.float32))
    assert metrics.auc.value(np.asarray(ranks, float)[None], np.array([3.0]))[0] == 0.5


def test_values_do_not_depend_on_devices_chunk_and_batch():
    dataset = clients.dataset(clients.rare_events)
    first, _, _ = scored(tasks.binary(), dataset, client_chunk=1, eval_batch_size=4)
    for options in ({"client_chunk": 3, "eval_batch_size": 16}, {"client_state_in": "host"}):
        other, _, _ = scored(tasks.binary(), dataset, mesh=mesh(2), **options)
        for name, values in first["test/global"].values.items():
            np.testing.assert_allclose(other["test/global"].values[name], values, atol=1e-6)


def mesh(count):
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("clients",))


def test_a_metric_of_a_user_as_two_functions():
    def cost_in_euros(outputs, y, mask):
        missed, false_alarms = (outputs[:, 0] <= 0) & (y == 1), (outputs[:, 0] > 0) & (y == 0)
        return ((5000.0 * missed + 200.0 * false_alarms) * mask).sum()

    cost = tasks.Metric("cost", cost_in_euros, lambda total, n: total / n, higher_is_better=False)
    dataset = clients.dataset(clients.rare_events)
    task = tasks.binary().with_metrics(cost).with_headline("cost")
    scores, federation, state = scored(task, dataset)
    for k in range(dataset.num_clients):
        out, y = outputs_of(federation, state, k)
        own = (5000.0 * ((out[:, 0] <= 0) & (y == 1)) + 200.0 * ((out[:, 0] > 0) & (y == 0))).mean()
        assert scores["test/global"].headline[k] == pytest.approx(own, rel=1e-6)
    assert "cost/test/global/worst_decile" in summarise(scores)
