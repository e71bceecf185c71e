"""Clients that send what they were given, and a server that keeps what it gets."""

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.datasets import FederatedDataset, Owned
from pflalign_jax.federated import Algorithm, ClientOutput, Mean, federate
from pflalign_jax.federated.participation import Participation, Turnout
from pflalign_jax.models import Model

MODEL = Model(
    init=lambda key, x: {"w": jnp.zeros(x.shape[-1])},
    apply=lambda params, x: jnp.stack([x @ params["w"], 0 * x[:, 0]], axis=1),
)


def dataset(vectors, sizes=None):
    """Return clients whose every training example is their vector (a row of ``[K, P]``)."""
    vectors = np.asarray(vectors, np.float32)
    num_clients = len(vectors)
    sizes = [1] * num_clients if sizes is None else sizes
    count = sum(sizes)
    none = Owned(np.zeros(0, int), np.zeros(num_clients + 1, int))
    splits = {
        "train": Owned(np.arange(count), np.cumsum([0, *sizes])),
        "validation": none,
        "test": Owned(count + np.arange(num_clients), np.arange(num_clients + 1)),
    }
    x = np.concatenate([np.repeat(vectors, sizes, axis=0), np.ones_like(vectors)])
    names = np.array([f"c{k}" for k in range(num_clients)])
    ids = np.arange(num_clients, dtype=np.int32)
    y = np.arange(len(x), dtype=np.int32) % 2
    return FederatedDataset("postbox", x, y, 2, splits, names, ids, np.float32(0), np.float32(1))


def post(dtype=jnp.float32):
    """Return the algorithm: clients count their rounds, the server keeps the mean message."""

    def client_update(received, client, data, key):
        vector = data.x[data.start]
        params = {"w": received["w"] + vector}
        metrics = {"loss": Mean(vector[0] * 0 + 1, jnp.ones(()))}
        return ClientOutput({"w": vector.astype(dtype)}, client + 1, params, data.size, metrics)

    return Algorithm(
        init=lambda params, key: (params, jnp.zeros(())),
        client_update=client_update,
        server_update=lambda server, aggregate: aggregate.value,
        personal_params=lambda received, client, data: received,
        global_params=lambda received: received,
    )


def only(*positions):
    """Return a participation in which the same clients answer in every round."""
    cohort = np.array(positions, int)
    return Participation(lambda *_: Turnout(cohort, len(cohort)), None, False, False)


def mesh(count):
    """Return a mesh of the first ``count`` devices."""
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("clients",))


def after(algorithm, data, rounds=1, devices=1, **options):
    """Return the federation, its state and the last result."""
    federation = federate(algorithm, MODEL, data, mesh=mesh(devices), **options)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, result = federation.run_round(state)
    return federation, state, result


def sent(algorithm, data, **options):
    """Return what the server got, as NumPy."""
    _, state, _ = after(algorithm, data, **options)
    return np.asarray(algorithm.broadcast(state.server)["w"])
