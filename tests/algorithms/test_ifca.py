"""IFCA's rounds, worked out by hand; see `hand`. One cluster is in `test_limits`."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import MODEL, after, body_loss, two_clients

from pflalign_jax import algorithms
from pflalign_jax.federated import federate, first_models


def starting_at(*bodies, **options):
    """Return IFCA whose models start with these bodies."""
    models = {"body": jnp.array(bodies), "head": jnp.zeros(len(bodies))}
    algorithm = algorithms.ifca(MODEL, 0.5, num_clusters=len(bodies), loss=body_loss, **options)
    return algorithm._replace(init=lambda params, key: (models, ()))


def bodies(models):
    return models["body"].tolist()


def test_every_client_trains_the_model_that_fits_it():
    # a, at 2, takes 1.5, b, at 0, takes .25; each goes half of its way.
    server, _, personal = after(starting_at(1.5, 0.25), 1)
    assert bodies(server) == pytest.approx([1.75, 0.125])
    assert [float(p["body"]) for p in personal] == pytest.approx([1.75, 0.125])


def test_who_chooses_the_same_model_is_averaged_by_examples():
    # As FedAvg from 1: (.5 - 3 * .5) / 4 = -.25. Nobody takes 9, which stays.
    server, _, _ = after(starting_at(9.0, 1.0), 1)
    assert bodies(server) == pytest.approx([9.0, 0.75])


def test_a_client_may_change_its_cluster():
    # Both take 1.2, which b with its three examples pulls away from a: 1.2, .85, .675. Then 3.3 is
    # nearer to a, and b is alone with the other.
    server, _, _ = after(starting_at(3.3, 1.2), 2)
    assert bodies(server) == pytest.approx([3.3, 0.675])
    server, _, _ = after(starting_at(3.3, 1.2), 3)
    assert bodies(server) == pytest.approx([2.65, 0.3375])


def test_a_model_and_a_number_are_sent_up_and_all_models_down():
    federation = federate(starting_at(1.0, 2.0, 3.0), MODEL, two_clients())
    one_model = 2 * 4
    assert federation.bytes_per_round == (2 * (one_model + 4), 2 * 3 * one_model)


def test_new_clients_choose_by_their_own_data():
    data = two_clients()
    new = two_clients()._replace(
        client_names=np.array(["c", "d"]), client_ids=np.array([2, 3], np.int32)
    )
    federation = federate(starting_at(1.5, 0.25), MODEL, data._replace(new_clients=new))
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    received = federation.evaluate_new(state)["new_clients/personal/received"]
    # Their test example is 1, its logits are (body, 0) and its label 0.
    expected = np.log1p(np.exp(-np.array([1.75, 0.125])))
    np.testing.assert_allclose(received.loss, expected, rtol=1e-6)


def test_first_models_are_one_models_entries_in_other_orders():
    params = {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.zeros(4)}
    models = first_models(params, jax.random.key(0), 3)
    assert jax.tree.map(jnp.shape, models) == {"kernel": (3, 3, 4), "bias": (3, 4)}
    kernels = np.asarray(models["kernel"])
    np.testing.assert_array_equal(kernels[0], params["kernel"])
    np.testing.assert_array_equal(np.sort(kernels.reshape(3, -1)), np.arange(12) + np.zeros((3, 1)))
    assert len({tuple(kernel.ravel().tolist()) for kernel in kernels}) == 3
    alone = first_models(params, jax.random.key(0), 1)
    np.testing.assert_array_equal(alone["kernel"][0], params["kernel"])


def test_the_how_to_shows_the_file():
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs" / "howto" / "own_algorithm.md").read_text()
    source = inspect.getsource(inspect.getmodule(algorithms.ifca))
    assert source in page and len(source.splitlines()) <= 61
