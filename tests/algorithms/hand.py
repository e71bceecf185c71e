"""A problem small enough to work every algorithm out by hand.

Two clients pull ``body + head`` towards their data with the loss ½ (body + head - x)²: client a has
one example at 2, client b has three at 0. Everything starts at body = 1, head = 0; a round is one
step per epoch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.datasets import FederatedDataset, Owned
from pflalign_jax.federated import ClientData, federate
from pflalign_jax.models import Model
from pflalign_jax.models.base import Adapters

MODEL = Model(
    init=lambda key, x: {"body": jnp.ones(()), "head": jnp.zeros(())},
    apply=lambda p, x: jnp.stack([(p["body"] + p["head"]) * x[:, 0], 0 * x[:, 0]], axis=1),
)


FEATURES = Model(
    init=lambda key, x: {
        "body": jnp.ones(()),
        "head": {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.zeros(2)},
    },
    apply=lambda p, x: p["body"] * x @ p["head"]["kernel"] + p["head"]["bias"][None],
    head=("head",),
    features=lambda p, x: p["body"] * x,
)
"""z = body * x, and two logits (z, 0)."""


def _adapted(params):
    adapter = params["lora"]["layer"]
    return (adapter["a"] @ adapter["b"])[0, 0] + adapter.get("merged", jnp.zeros((1, 1)))[0, 0]


ADAPTED = Model(
    init=lambda key, x: {
        "lora": {"layer": {"a": jnp.ones((1, 1)), "b": jnp.zeros((1, 1))}},
        "head": jnp.zeros(()),
    },
    apply=lambda p, x: jnp.stack([(_adapted(p) + p["head"]) * x[:, 0], 0 * x[:, 0]], axis=1),
    head=("head",),
    adapters=Adapters(rank=1, alpha=1.0, dropout=0.0),
)
"""An adapter, a = 1 and b = 0, whose product takes the place of the body, and a head."""


def adapted_loss(params, batch, key):
    """Return the loss of `ADAPTED`: ½ (a b + head - x)²."""
    return loss({"body": _adapted(params), "head": params["head"]}, batch, key)


def loss(params, batch, key):
    """Return the mean over a batch's real examples."""
    error = params["body"] + params["head"] - batch.x[:, 0]
    return 0.5 * jnp.sum(error**2 * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)


def body_loss(params, batch, key):
    """Return the same without a head, which then never moves."""
    return loss({"body": params["body"], "head": 0.0}, batch, key)


def two_clients(sizes=(1, 3)):
    """Return the data; ``sizes`` of one client give that client alone."""
    values = np.repeat([2.0, 0.0][: len(sizes)], sizes)
    count, num_clients = len(values), len(sizes)
    train = Owned(np.arange(count), np.cumsum([0, *sizes]))
    test = Owned(count + np.arange(num_clients), np.arange(num_clients + 1))
    none = Owned(np.zeros(0, int), np.zeros(num_clients + 1, int))
    x = np.concatenate([values, np.ones(num_clients)]).astype(np.float32)[:, None]
    return FederatedDataset(
        "two", x, np.zeros(len(x), np.int32), 2,
        {"train": train, "validation": none, "test": test},
        np.array(["a", "b"])[:num_clients], np.arange(num_clients, dtype=np.int32),
        np.float32(0), np.float32(1),
    )  # fmt: skip


def labelled():
    """Return the two clients with labels: a's example has label 1, b's labels 0, 0, 1."""
    data = two_clients()
    x = np.array([2.0, 1.0, 3.0, 4.0, 1.0, 1.0], np.float32)[:, None]
    return data._replace(x=x, y=np.array([1, 0, 0, 1, 0, 0], np.int32))


def window(data, k):
    """Return the `ClientData` of one of two clients."""
    train = data.splits["train"]
    longest = int(train.sizes.max())
    return ClientData(
        jnp.asarray(data.x), jnp.asarray(data.y), jnp.int32(train.offsets[k]),
        jnp.int32(train.sizes[k]), positions=jnp.arange(longest, dtype=jnp.int32),
        mean=jnp.float32(0), std=jnp.float32(1), client_id=jnp.int32(k),
    )  # fmt: skip


def after(algorithm, rounds, data=None, model=MODEL):
    """Return the server's state, both clients' states and their personal models."""
    data = two_clients() if data is None else data
    federation = federate(algorithm, model, data)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    every = range(data.num_clients)
    return (
        state.server,
        [federation.client_state(state, k) for k in every],
        [federation.personal_params(state, k) for k in every],
    )


def floats(tree):
    """Return a tree of Python floats."""
    return jax.tree.map(float, tree)
