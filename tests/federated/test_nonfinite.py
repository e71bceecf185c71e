"""Clients whose round leaves the finite numbers are left out of it, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import ALGORITHMS, MODEL, dataset, host, mesh

from pflalign_jax.federated import (
    GATHERED,
    MEAN_BY_EXAMPLES,
    Algorithm,
    ClientOutput,
    Mean,
    federate,
)
from pflalign_jax.federated.participation import Participation, Turnout

BAD = 2


def stumbling(where, gather=False, bad=(BAD,)):
    """Return an algorithm in which something of client ``bad`` is not finite."""

    def client_update(received, client, window, key):
        fails = jnp.isin(window.client_id, jnp.array(bad, jnp.int32))
        nan = {part: jnp.where(fails & (part == where), jnp.nan, 0) for part in
               ("message", "state", "loss", "params")}  # fmt: skip
        message = window.x[window.start] + nan["message"]
        metrics = {"loss": Mean(window.x[window.start][0] + nan["loss"], jnp.ones(()))}
        state = {"turns": client["turns"] + 1, "own": client["own"] + 1 + nan["state"]}
        params = jax.tree.map(lambda a: a + nan["params"], received["params"])
        return ClientOutput(message, state, params, window.size, metrics)

    def server_update(server, aggregate):
        mean = aggregate.value
        if gather:
            messages, weights, _ = mean
            mean = jnp.sum(messages * weights[:, None], axis=0) / weights.sum()
        return {**server, "mean": mean}

    return Algorithm(
        init=lambda params, key: (
            {"params": params, "mean": jnp.full(4, 7.0)},
            {"turns": jnp.zeros((), jnp.int32), "own": jnp.zeros(3)},
        ),
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda received, client, data: received["params"],
        global_params=None,
        aggregation=GATHERED if gather else MEAN_BY_EXAMPLES,
    )


def round_of(algorithm, devices=2, score=False, **options):
    federation = federate(algorithm, MODEL, dataset(), mesh=mesh(devices), **options)
    state, result = federation.run_round(federation.init(jax.random.key(0)), score=score)
    return federation, state, result


def first_examples(positions):
    data = dataset()
    return data.x[data.splits["train"].indices[data.splits["train"].offsets[positions]]]


@pytest.mark.parametrize(("where", "gather", "chunk"), [
    ("message", False, 1), ("state", False, 3), ("loss", False, 1), ("message", True, 3),
])  # fmt: skip
def test_a_client_is_left_out_and_keeps_its_state(where, gather, chunk):
    federation, state, result = round_of(stumbling(where, gather), client_chunk=chunk)
    others = np.delete(np.arange(7), BAD)
    sizes = dataset().splits["train"].sizes
    expected = np.average(first_examples(others), axis=0, weights=sizes[others])
    np.testing.assert_allclose(state.server["mean"], expected, rtol=1e-5)
    assert float(result.metrics["loss"]) == pytest.approx(
        first_examples(others)[:, 0].mean(), rel=1e-5
    )
    assert jax.tree.map(int, result.counts) == (6, 1)
    assert result.nonfinite().tolist() == [BAD]
    for k in range(7):
        own = federation.client_state(state, k)
        assert int(own["turns"]) == (k != BAD)
        assert own["own"].tolist() == [float(k != BAD)] * 3


def test_finite_rounds_leave_nobody_out():
    _, _, result = round_of(stumbling("nothing"))
    assert jax.tree.map(int, result.counts) == (7, 0)
    assert result.nonfinite().tolist() == []


@pytest.mark.parametrize("gather", [False, True])
def test_nobody_left_changes_nothing(gather):
    federation, state, result = round_of(stumbling("loss", gather, bad=range(7)))
    assert state.server["mean"].tolist() == [7.0] * 4
    assert np.isnan(float(result.metrics["loss"]))
    assert jax.tree.map(int, result.counts) == (0, 7)
    assert int(federation.client_state(state, 0)["turns"]) == 0


def test_who_is_left_out_is_scored_with_what_it_received():
    federation, state, result = round_of(stumbling("params"), score=True)
    assert result.nonfinite().tolist() == []  # what is sent and kept is finite
    adapted = federation.evaluate(state)["test/personal/adapted"]
    received = federation.evaluate(state, adapt=False)["test/personal/received"]
    np.testing.assert_array_equal(adapted.loss, received.loss)
    _, _, result = round_of(stumbling("message"), score=True)
    assert np.isfinite(result.adapted["test/personal/adapted"].loss).all()


@pytest.mark.parametrize("name", ["fedavg", "pflalign"])
def test_a_round_with_a_broken_client_is_that_without_it_bit_for_bit(name):
    data = dataset()
    broken = data.x.copy()
    own = data.splits["train"]
    broken[own.indices[own.offsets[BAD] : own.offsets[BAD + 1]]] = 1e38
    without = Participation(lambda *_: Turnout(np.delete(np.arange(7), BAD), 6), None, False, False)
    servers = []
    for given, participation in ((data._replace(x=broken), None), (data, without)):
        algorithm = ALGORITHMS[name](batch_size=5)
        federation = federate(algorithm, MODEL, given, mesh=mesh(1), participation=participation)
        state = federation.init(jax.random.key(0))
        for _ in range(2):
            state, result = federation.run_round(state)
        servers.append(host((state.server, federation.client_state(state, 0))))
        assert int(result.counts.nonfinite) == (participation is None)
    jax.tree.map(np.testing.assert_array_equal, *servers)
