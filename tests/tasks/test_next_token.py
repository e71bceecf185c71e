"""Next tokens with positions that do not count: losses, metrics, whatever else uses labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pflalign_jax import algorithms, federate, models, summarise, tasks
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.queries import client_label_counts
from pflalign_jax.federated.algorithm import ClientData
from pflalign_jax.federated.client_statistics import class_counts
from pflalign_jax.messages.attacks import label_flip
from pflalign_jax.models.base import IGNORED, Batch, Model, labelled_features
from pflalign_jax.tasks import metrics

CLASSES, LENGTH = 7, 5
SIZES = (9, 4, 14, 2)


def text(ignored=0.4, task="next_token", seed=0):
    """Return examples of four clients; a share of labels does not count, at least one does."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, CLASSES, (2, sum(SIZES), LENGTH))
    hidden = rng.random(y.shape) < ignored
    hidden[:, 2] = False
    y = np.where(hidden, IGNORED, y).astype(np.int32)
    owner = np.repeat(np.arange(4), SIZES)
    return Examples("text", x.astype(np.uint16), y, CLASSES, owner, task=task)


def clients(**options):
    return partition_examples(text(), **{"test_fraction": 0.5, **options})


def bigram():
    """Return a model of the next token from the last one, a table of logits."""

    def init(key, x):
        return {"table": jax.random.normal(key, (CLASSES, CLASSES))}

    return Model(init, lambda params, x: params["table"][x])


def before(values):
    """Return the mean of each example as it was when all positions counted."""
    return values.reshape(values.shape[0], -1).mean(axis=1)


@pytest.mark.parametrize("length", [80, 49])
def test_where_all_positions_count_numbers_are_those_of_before(length):
    rng = np.random.default_rng(length)
    logits = jnp.asarray(rng.normal(size=(6, length, 80)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 80, (6, length)), jnp.int32)
    mask = jnp.array([1, 1, 1, 1, 1, 0], jnp.float32)

    def losses(logits):
        return before(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def hits(logits):
        return before((jnp.argmax(logits, axis=-1) == y).astype(jnp.float32))

    pairs = ((losses, lambda z: models.example_losses(z, y)),
             (hits, lambda z: models.example_hits(z, y)))  # fmt: skip
    for old, new in pairs:
        np.testing.assert_array_equal(jax.jit(old)(logits), jax.jit(new)(logits))
    gradients = [jax.jit(jax.grad(lambda z, f=f: f(z).sum()))(logits) for f in pairs[0]]
    np.testing.assert_array_equal(*gradients)
    for metric, old in (("accuracy", hits), ("loss", losses), ("nll", losses)):
        found = value_of(metric, logits, y, mask)
        total = np.float64(jax.jit(lambda z, f=old: jnp.sum(f(z) * mask))(logits))
        assert found == total / 5, metric
    assert value_of("perplexity", logits, y, mask) == np.exp(value_of("nll", logits, y, mask))


def value_of(name, logits, y, mask):
    """Return a client's value of a metric of the task."""
    metric = {m.name: m for m in tasks.next_token().metrics}[name]
    return metric_value(metric, logits, y, mask)


def metric_value(metric, logits, y, mask):
    sums = jax.tree.map(
        lambda a: np.asarray(a, np.float64)[None], jax.jit(metric.statistics)(logits, y, mask)
    )
    with np.errstate(invalid="ignore"):  # labels that do not occur
        return metric.value(sums, np.array([float(mask.sum())]))[0]


def test_an_example_without_labels_that_count_has_no_loss_and_no_gradient():
    model, task = bigram(), tasks.next_token()
    params = model.init(jax.random.key(0), None)
    x = jnp.array([[0, 1, 2], [3, 4, 5]])
    y = jnp.array([[1, IGNORED, 3], [IGNORED] * 3])
    losses = task.example_losses(model.apply(params, x), y)
    z = np.asarray(params["table"], np.float64)
    nll = np.log(np.exp(z).sum(1)) - z[np.arange(CLASSES), [1, 0, 3, 0, 0, 0, 0]]
    np.testing.assert_allclose(losses, [(nll[0] + nll[2]) / 2, 0], rtol=1e-5)
    gradient = jax.grad(task.loss(model))(params, Batch(x, y, jnp.ones(2)), None)["table"]
    assert (np.asarray(gradient[jnp.array([1, 3, 4, 5])]) == 0).all()  # their labels do not count
    assert (np.asarray(gradient[jnp.array([0, 2])]) != 0).all()


def test_padding_changes_no_loss():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 4, CLASSES)), jnp.float32)
    y = jnp.asarray(rng.integers(0, CLASSES, (3, 4)), jnp.int32)
    longer = jnp.concatenate([logits, 50 + logits], axis=1)
    padded = jnp.concatenate([y, jnp.full_like(y, IGNORED)], axis=1)
    for function in (models.example_losses, models.example_hits):
        np.testing.assert_allclose(function(longer, padded), function(logits, y), rtol=1e-6)


def expected(logits, y):
    """Return the metrics of a client's examples, in NumPy."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    counts = y != IGNORED
    nll = -np.take_along_axis(log_p, np.maximum(y, 0)[..., None], -1)[..., 0] * counts
    hits = (logits.argmax(-1) == y) & counts
    rank = (logits > np.take_along_axis(logits, np.maximum(y, 0)[..., None], -1)).sum(-1)
    tokens = counts.sum()
    return {
        "accuracy": hits.sum() / tokens,
        "nll": nll.sum() / tokens,
        "perplexity": np.exp(nll.sum() / tokens),
        "loss": (nll.sum(1) / counts.sum(1)).mean(),
        "top_2": ((rank < 2) & counts).sum() / tokens,
    }


@pytest.mark.parametrize(("devices", "chunk", "batch"), [(1, 1, 8), (3, 2, 2)])
def test_metrics_are_over_tokens_whatever_the_devices(devices, chunk, batch):
    dataset, model = clients(), bigram()
    task = tasks.next_token().with_metrics(metrics.top_k(2))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("clients",))
    federation = federate(
        algorithms.fedavg(model, 0.5), model, dataset, task=task, mesh=mesh, client_chunk=chunk,
        eval_batch_size=batch,
    )  # fmt: skip
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    found = federation.evaluate(state, adapt=False)["test/global"]
    table = np.asarray(federation.personal_params(state, 0)["table"], np.float64)
    for k in range(dataset.num_clients):
        mine = dataset.splits["test"].of_client(k)
        for name, value in expected(table[dataset.x[mine]], dataset.y[mine]).items():
            assert found.values[name][k] == pytest.approx(value, rel=1e-5), (name, k)
    assert summarise({"test/global": found})["perplexity/test/global/mean"] > 1


def test_other_metrics_leave_out_what_does_not_count():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(4, LENGTH, CLASSES)), jnp.float32)
    y = np.where(rng.random((4, LENGTH)) < 0.5, IGNORED, rng.integers(0, CLASSES, (4, LENGTH)))
    y[:, 0] = 1
    rows = y.ravel() != IGNORED
    alone = jnp.asarray(logits.reshape(-1, CLASSES)[rows]), jnp.asarray(y.ravel()[rows])
    for metric in (metrics.macro_f1, metrics.balanced_accuracy, metrics.calibration_error):
        found = metric_value(metric, logits, jnp.asarray(y), jnp.ones(4))
        assert found == pytest.approx(metric_value(metric, *alone, jnp.ones(rows.sum())), rel=1e-6)
    one = metric_value(metrics.brier, logits[:1, :1], jnp.asarray(y[:1, :1]), jnp.ones(1))
    padded = jnp.asarray([[1] + [IGNORED] * (LENGTH - 1)])
    assert metric_value(metrics.brier, logits[:1], padded, jnp.ones(1)) == pytest.approx(one)


def test_methods_of_classes_see_only_labels_that_count():
    y = jnp.array([[1, IGNORED], [IGNORED, 1], [2, 2]])
    model = models.Model(None, None, features=lambda params, x: x)
    batch = Batch(jnp.ones((3, 2, 4)), y, jnp.array([1.0, 1.0, 0.0]))
    z, labels, mask = labelled_features(model, None, batch)
    assert z.shape == (6, 4) and mask.tolist() == [1, 0, 0, 1, 0, 0] and labels.min() >= 0
    data = ClientData(None, y, 0, 2, jnp.arange(3), None, None)
    assert class_counts(data, 3).tolist() == [0, 2, 0]


def test_what_changes_or_counts_labels_leaves_others_alone():
    examples, dataset = text(), clients()
    counted = client_label_counts(dataset)
    assert counted.sum() == (examples.y != IGNORED).sum()
    np.testing.assert_array_equal(counted[1], np.bincount(of_client(examples, 1), minlength=7))
    flipped = label_flip(dataset, np.arange(4))
    assert ((flipped.y == IGNORED) == (examples.y == IGNORED)).all()
    shifted = clients(label_shift="permute")
    assert ((shifted.y == IGNORED) == (examples.y == IGNORED)).all()
    # The first label that counts is the one that partitions go by.
    dealt = clients(partition="pathological", classes_per_client=2, num_clients=4)
    for k in range(4):
        mine = np.concatenate([dealt.splits[s].of_client(k) for s in dealt.splits])
        assert len({next(t for t in row if t != IGNORED) for row in dealt.y[mine].tolist()}) == 2


def of_client(examples, k):
    y = examples.y[examples.owner == k]
    return y[y != IGNORED]


def test_where_labels_must_count():
    examples = text()
    assert tasks.infer_task(partition_examples(examples._replace(task=None))).name == "next_token"
    with pytest.raises(DatasetError, match=r"label -1 at example 0 .*for task='next_token' only"):
        partition_examples(examples._replace(task="classification"))
    with pytest.raises(DatasetError, match="label -1 at example 3"):
        wrong = np.array([0, 1, 2, -1], np.int32)
        partition_examples(Examples("few", examples.x[:4], wrong, 3))
    below = examples.y.copy()
    below[7, 1] = -2
    with pytest.raises(DatasetError, match=r"label -2 at example 7 .*outside 0\.\.6"):
        partition_examples(examples._replace(y=below))
    dataset = partition_examples(examples)
    with pytest.raises(DatasetError, match=r"label -1 of example \d+ is outside"):
        tasks.classification().check(dataset)


def test_clients_without_a_label_that_counts_are_refused_by_name():
    dataset = clients()
    y = dataset.y.copy()
    y[dataset.splits["test"].of_client(2)] = IGNORED
    with pytest.raises(
        DatasetError, match=r"1 clients have test examples without any .*'2' with 7"
    ):
        tasks.next_token().check(dataset._replace(y=y))
    new = clients(num_new_clients=1)
    y = new.y.copy()
    y[new.new_clients.splits["train"].indices] = IGNORED
    other = new.new_clients._replace(y=y)
    with pytest.raises(DatasetError, match="1 clients have train examples"):
        tasks.next_token().check(new._replace(new_clients=other))
