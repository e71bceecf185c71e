"""Models of all clients are those that evaluations score; unseen ones know nothing of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_new_clients import with_new
from toy import ALGORITHMS, LOSS, MODEL, dataset, mesh

from pflalign_jax import align_transform, federate
from pflalign_jax.federated.device_program import training_data
from pflalign_jax.federated.local import take
from pflalign_jax.messages import clip, transform_messages


def trained(algorithm, data, devices=1, **options):
    federation = federate(algorithm, MODEL, data, mesh=mesh(devices), **options)
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    return federation, state


def mean_losses(params, data, split):
    """Return ``[K]``, the loss of each client's model on its examples of a split."""
    losses = []
    for k, owned in enumerate(data.splits[split].of_client(k) for k in range(data.num_clients)):
        own = jax.tree.map(lambda a, k=k: jnp.asarray(a[k]), params)
        logits = MODEL.apply(own, (data.x[owned] - data.mean) / data.std)
        y = data.y[owned]
        losses.append(-np.mean(jax.nn.log_softmax(logits)[np.arange(len(y)), y]))
    return np.array(losses)


@pytest.mark.parametrize("clients", ["new", pytest.param("train", marks=pytest.mark.slow)])
def test_models_are_those_that_are_scored(clients):
    data = with_new()
    federation, state = trained(ALGORITHMS["pflalign"](batch_size=5), data, new_client_steps=2)
    evaluate = federation.evaluate if clients == "train" else federation.evaluate_new
    scores = evaluate(state)
    group, split = (data, "test") if clients == "train" else (data.new_clients, "new_clients")
    before = jax.tree.map(np.array, state.server)
    for stage in ("received", "adapted"):
        params = federation.all_params(state, clients, stage)
        found = mean_losses(params, group, "test")
        np.testing.assert_allclose(found, scores[f"{split}/personal/{stage}"].loss, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, federation.adapted_params(state, clients), params)
    jax.tree.map(np.testing.assert_array_equal, before, state.server)


@pytest.mark.slow
def test_models_do_not_depend_on_devices_chunk_or_place():
    found = []
    for options in ({}, {"devices": 4}, {"client_chunk": 3}, {"client_state_in": "host"}):
        federation, state = trained(ALGORITHMS["pflalign"](batch_size=5), dataset(), **options)
        found.append(federation.adapted_params(state))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0], other)


def test_an_unseen_model_knows_nothing_of_the_clients_examples():
    """Even where an algorithm starts newcomers from their own examples."""
    algorithm, data = ALGORITHMS["fedavg"](batch_size=5), with_new()

    def newcomer(received, window):
        seen = jnp.sum(jnp.where(window.positions < window.size, 1.0, 0.0)) + jnp.sum(window.x)
        _, client = algorithm.init(received.params, jax.random.key(0))
        return client if client != () else {"seen": seen}

    def personal_params(received, client, window):
        return jax.tree.map(lambda a: a + client["seen"], received.params)

    algorithm = algorithm._replace(newcomer=newcomer, personal_params=personal_params)
    federation = federate(algorithm, MODEL, data, mesh=mesh(1))
    state = federation.init(jax.random.key(0))
    unseen, seen = (federation.all_params(state, "new", s) for s in ("unseen", "received"))
    model = jax.tree.map(np.asarray, state.server.params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.stack([b, b])), unseen, model)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (unseen, seen)), strict=True))


def test_the_fisher_information_is_that_of_the_optimisers_second_moments():
    """Of a new client by hand: two steps on all of its examples, whatever is done to messages."""
    data = with_new()
    algorithm = ALGORITHMS["pflalign"](batch_size=100, local_epochs=2)
    algorithm = transform_messages(algorithm, clip(1.0), data)
    federation = federate(algorithm, MODEL, data, mesh=mesh(1))
    state = federation.init(jax.random.key(0))
    found = federation.all_params(state, "new", "fisher")
    window = training_data(data.new_clients, 1)
    n = int(window.size)
    batch = take(window, jnp.arange(n), jnp.ones(n))
    tx, params = align_transform(3.0), state.server.params
    zeros, memory = jax.tree.map(jnp.zeros_like, params), tx.init(params)

    @jax.jit
    def step(params, memory):
        grads = jax.grad(LOSS)(params, batch, jax.random.key(0))
        updates, memory = tx.update(grads, memory, params, direction=zeros, num_steps=2)
        return optax.apply_updates(params, updates), memory

    for _ in range(2):
        params, memory = step(params, memory)

    def same(a, v):
        np.testing.assert_allclose(a[1], n * v, rtol=1e-3, atol=1e-9)

    assert 0 < n < 100
    jax.tree.map(same, found, memory.v)


def test_other_words_are_refused():
    federation, state = trained(ALGORITHMS["fedavg"](), dataset())
    with pytest.raises(ValueError, match="clients='old', stage='adapted': choose from"):
        federation.adapted_params(state, "old")
    with pytest.raises(ValueError, match="toy has no new clients"):
        federation.adapted_params(state, "new")
