"""Very many clients with next to no data."""

import jax
import numpy as np

from pflalign_jax import algorithms, federate, models
from pflalign_jax.datasets import Examples, partition_examples


def test_every_client_has_one_example():
    """Each trains on its own, and is scored on its own."""
    count, cohort = 10_000, 100
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * count, 4)).astype(np.float32)
    owner, split = np.tile(np.arange(count), 2), np.repeat(["train", "test"], count)
    order = rng.permutation(2 * count)  # as in a file in which owners are mixed
    examples = Examples("many", x, (x[:, 0] > 0).astype(np.int64), 2, owner, split)
    examples = examples._replace(
        x=x[order], y=examples.y[order], owner=owner[order], split=split[order]
    )
    dataset = partition_examples(examples, source_split=True)
    assert dataset.num_clients == count
    assert dataset.client_names.tolist() == [str(k) for k in range(count)]
    for name, size in (("train", 1), ("validation", 0), ("test", 1)):
        assert (dataset.splits[name].sizes == size).all()
    own = order[dataset.splits["train"].indices]  # where examples were before they were mixed
    np.testing.assert_array_equal(own, np.arange(count))

    model = models.logistic(2)
    algorithm = algorithms.fedavg(model, 0.5)
    federation = federate(algorithm, model, dataset, cohort_size=cohort)
    state = federation.init(jax.random.key(0))
    for _ in range(5):
        state, _ = federation.run_round(state)
    scores = federation.evaluate(state)["test/global"]
    assert scores.accuracy.shape == (count,) and set(np.unique(scores.accuracy)) == {0.0, 1.0}
    assert scores.accuracy.mean() > 0.7
