"""Local optimisers: by hand, in every algorithm, where SGD is the only one, and from configs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand import ADAPTED, FEATURES, MODEL, after, body_loss, labelled, two_clients
from make import ADAPTERS_ONLY, make

from pflalign_jax import algorithms, models
from pflalign_jax.federated import ClientData, federate, inject_hyperparams, local_tx
from pflalign_jax.runs.build import build_algorithm
from pflalign_jax.runs.config import ConfigError, default_config, resolve
from pflalign_jax.tasks import classification

SGD_ONLY = ("scaffold", "pfedme")
FAST = ("fedavg", "ditto", "apfl", "rolora")
"""By default: plain, with two local loops, with a transform for each part, with a mask."""


def body(algorithm):
    return float(after(algorithm, 1)[0].params["body"])


def steps_of(optimizer, rate, x, w=1.0, count=2):
    """Return where steps on ½ (w - x)² lead, as the papers have it."""
    m, v = 0.0, 0.0
    for t in range(1, count + 1):
        g = w - x
        if optimizer == "momentum":
            m = 0.9 * m + g
            w -= rate * m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            w -= rate * (m_hat / (v_hat**0.5 + 1e-8) + 0.01 * w)
    return w


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_fedavg_by_hand(optimizer):
    work = {"loss": body_loss, "local_optimizer": optimizer, "local_epochs": 2}
    expected = (steps_of(optimizer, 0.1, 2.0) + 3 * steps_of(optimizer, 0.1, 0.0)) / 4
    assert body(algorithms.fedavg(MODEL, 0.1, **work)) == pytest.approx(expected, abs=1e-6)
    # Without its two mechanisms pFLAlign is FedAvg, whatever the optimiser.
    plain = {"precondition": False, "realignment": False}
    found = body(algorithms.pflalign(MODEL, 0.1, **plain, **work))
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_first_step_of_adamw():
    # Its direction is the gradient's sign; weights decay by .01 of the step size.
    found = body(algorithms.fedavg(MODEL, 0.1, loss=body_loss, local_optimizer="adamw"))
    assert found == pytest.approx(1 + (0.099 - 3 * 0.101) / 4, abs=1e-6)


def test_sgd_is_optax_s():
    params = {"w": jnp.arange(3.0)}
    grads = {"w": jnp.array([0.3, -1.7, 1e-9])}
    tx = local_tx(0.3)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], -0.3 * grads["w"])
    assert not jax.tree.leaves(state)


def update_of(name, optimizer):
    """Return a client's message and model after a round."""
    model = ADAPTED if name in ADAPTERS_ONLY else FEATURES
    options = {"norms": ("head",)} if name == "fedbn" else {}
    algorithm = make(name, model, 0.05, 2, 2, local_epochs=2, batch_size=2,
                     local_optimizer=optimizer, **options)  # fmt: skip
    data = labelled()
    window = ClientData(
        jnp.asarray(data.x), jnp.asarray(data.y), start=jnp.int32(1), size=jnp.int32(3),
        positions=jnp.arange(3, dtype=jnp.int32), mean=jnp.float32(0), std=jnp.float32(1),
        client_id=jnp.int32(1),
    )  # fmt: skip
    server, client = algorithm.init(model.init(None, None), jax.random.key(0))
    received = algorithm.deliver(algorithm.broadcast(server), window.client_id)
    output = jax.jit(algorithm.client_update)(received, client, window, jax.random.key(1))
    shapes = [jax.tree.map(jnp.shape, state) for state in (client, output.state)]
    assert shapes[0] == shapes[1]
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves((output.message, output.params))])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow)
     for n in algorithms.NAMES if n not in SGD_ONLY],
)  # fmt: skip
def test_every_algorithm_with_adamw(name):
    sgd, adamw = (update_of(name, optimizer) for optimizer in ("sgd", "adamw"))
    assert np.isfinite(adamw).all() and np.abs(adamw - sgd).max() > 1e-4


@pytest.mark.parametrize("name", SGD_ONLY)
def test_where_sgd_is_the_only_one(name):
    with pytest.raises(ValueError, match=rf"^{name}: local_optimizer='adamw' is not allowed"):
        make(name, FEATURES, 0.1, 2, 2, local_optimizer="adamw")


def test_an_unknown_one_is_named():
    with pytest.raises(ValueError, match="'lamb' is unknown; choose from sgd, momentum, adamw"):
        algorithms.fedavg(FEATURES, local_optimizer="lamb")
    config = default_config("fedavg")
    config.local_optimizer = "lamb"
    with pytest.raises(ConfigError, match=r"local_optimizer='lamb'.*adamw"):
        resolve(config)


def test_every_factory_takes_one():
    for name in (*algorithms.NAMES, "fedopt"):
        assert "local_optimizer" in inspect.signature(getattr(algorithms, name)).parameters


def test_the_step_size_may_be_traced():
    def make_it(**values):
        return algorithms.fedavg(MODEL, loss=body_loss, local_optimizer="adamw", **values)

    def one_round(algorithm, **values):
        federation = federate(algorithm, MODEL, two)
        state, _ = federation.run_round(federation.init(jax.random.key(0), **values))
        return float(federation.personal_params(state, 0)["body"])

    two = two_clients()
    shared = inject_hyperparams(make_it, learning_rate=0.1)
    assert one_round(shared, learning_rate=0.3) == pytest.approx(
        one_round(make_it(learning_rate=0.3)), abs=1e-6
    )


def own(model, learning_rate=0.1):
    return algorithms.fedavg(model, learning_rate)


def test_a_config_gives_it_to_the_algorithm(monkeypatch):
    def built(name):
        config = default_config(name)
        config.local_optimizer = "momentum"
        return build_algorithm(resolve(config), models.mlp(2), classification(), 2, 2)

    with pytest.raises(ValueError, match="scaffold: local_optimizer='momentum' is not allowed"):
        built("scaffold")
    monkeypatch.setattr("pflalign_jax.runs.build.factory", lambda section, name: own)
    with pytest.raises(ConfigError, match="'momentum' does not go with algorithm 'fedavg', which"):
        built("fedavg")
