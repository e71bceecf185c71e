"""What one chooses an algorithm by is told from the algorithm itself."""

import functools

import jax
import numpy as np
import pytest

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.federated import federate, traits
from pflalign_jax.runs.build import call

HEAD, WHOLE = 4 * (5 * 10 + 10), 4 * (64 * 5 + 5 + 5 * 10 + 10)
"""Bytes of the head and of the model."""


@functools.cache
def digits():
    return datasets.digits(num_clients=3, fraction=0.1)


def traits_of(name, **fields):
    model = models.mlp(10, (5,))
    factory = getattr(algorithms, name)
    algorithm = call(factory, fields, model=model, num_classes=10, num_clients=3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))
    return traits(federate(algorithm, model, digits(), mesh=mesh, cohort_size=2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedavg", (WHOLE, WHOLE, 0, False, "nothing", "global model")),
        ("local", (0, 0, WHOLE, False, "own state", "first weights")),
        ("fedper", (WHOLE - HEAD, WHOLE - HEAD, HEAD, False, "own state", "what it receives")),
        ("scaffold", (2 * WHOLE, 2 * WHOLE, WHOLE, False, "own state", "global model")),
        ("fedamp", (WHOLE, WHOLE, 0, True, "row of the server", "mean of rows")),
    ],
)
def test_costs_of_a_client(name, expected):
    """The server of FedAMP keeps all clients' models and sends each its own row."""
    assert traits_of(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fedem", "own data"), ("superfed", "global model"), ("fedfomo", "mean of rows")],
)
def test_a_rule_of_its_own_for_newcomers(name, expected):
    """FedEM's looks at the client's examples; those of the others take what they are given."""
    found = traits_of(name)
    assert found.newcomer == expected and found.kept > 0
