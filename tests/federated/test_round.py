"""The common contract: every algorithm, any device count, chunk, order of clients."""

import functools

import jax
import numpy as np
import pytest
from toy import ALGORITHMS, FEW, MODEL, compilations, dataset, host, mesh

from pflalign_jax import datasets
from pflalign_jax.federated import Algorithm, ClientOutput, Mean, federate, summarise
from pflalign_jax.federated.participation import uniform


def run(name, rounds=3, data=None, devices=2, seed=0, **options):
    """Return the last state's server and per-client states, and all scores, on the host."""
    data = dataset() if data is None else data
    algorithm = ALGORITHMS[name](local_epochs=2, batch_size=5)
    federation = federate(algorithm, MODEL, data, mesh=mesh(devices), **options)
    state = federation.init(jax.random.key(seed))
    for _ in range(rounds):
        state, result = federation.run_round(state, score=True)
    clients = {
        str(name): host(federation.client_state(state, k))
        for k, name in enumerate(data.client_names)
    }
    scores = {**federation.evaluate(state), **{f"round {k}": v for k, v in result.adapted.items()}}
    return host(state.server), clients, summarise(scores), host(result.metrics)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected
    )


@functools.cache
def one_by_one(name, cohort_size):
    """Return `run` on one device, one client at a time."""
    return run(name, devices=1, client_chunk=1, cohort_size=cohort_size)


LAYOUTS = {
    *(("pflalign", *layout) for layout in ((1, 4, None), (2, 3, None), (4, 1, None), (8, 2, None))),
    *(("pflalign", *layout) for layout in ((1, 4, 3), (2, 3, 3), (4, 1, 3), (8, 2, 3))),
    *((name, 8, 2, cohort_size) for name in ALGORITHMS for cohort_size in (None, 3)),
}
SHORT = {
    ("pflalign", 2, 3, None),
    ("pflalign", 8, 2, 3),
}


@pytest.mark.parametrize(
    ("name", "devices", "chunk", "cohort_size"),
    [
        pytest.param(*layout, marks=[] if layout in SHORT else pytest.mark.slow)
        for layout in sorted(LAYOUTS, key=str)
    ],
)
def test_chunk_and_devices_do_not_matter(name, devices, chunk, cohort_size):
    expected = one_by_one(name, cohort_size)
    assert expected[2]["accuracy/test/personal/adapted/mean"] > 0.34
    found = run(name, devices=devices, client_chunk=chunk, cohort_size=cohort_size)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "cohort_size"),
    [
        ("pflalign", 3),
        pytest.param("pflalign", None, marks=pytest.mark.slow),
        pytest.param("fedavg", 3, marks=pytest.mark.slow),
        ("fedavg", None),
    ],
)
def test_order_of_clients_does_not_matter(name, cohort_size):
    shuffled = datasets.select_clients(dataset(), np.array([4, 0, 6, 2, 5, 1, 3]))
    assert_close(run(name, data=shuffled, cohort_size=cohort_size), one_by_one(name, cohort_size))


@pytest.mark.parametrize("name", ["pflalign", pytest.param("local", marks=pytest.mark.slow)])
def test_deterministic_by_seed(name):
    first, again, other = run(name), run(name), run(name, seed=1)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert other[3]["loss"] != first[3]["loss"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_state_shapes_are_stable_and_absent_clients_keep_theirs(name):
    data = dataset()
    algorithm = ALGORITHMS[name]()
    federation = federate(algorithm, MODEL, data, cohort_size=3, mesh=mesh(2))
    state = federation.init(jax.random.key(0))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    for _ in range(4):
        before = [host(federation.client_state(state, k)) for k in range(data.num_clients)]
        state, result = federation.run_round(state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == shapes
        assert len(set(result.cohort.tolist())) == 3
        for k in set(range(data.num_clients)) - set(result.cohort.tolist()):
            jax.tree.map(
                np.testing.assert_array_equal, host(federation.client_state(state, k)), before[k]
            )
    assert int(state.round) == 4


@pytest.mark.parametrize("name", FEW)
def test_nothing_compiles_after_the_first_round(name):
    federation = federate(ALGORITHMS[name](), MODEL, dataset(), cohort_size=3, mesh=mesh(2))
    state = federation.init(jax.random.key(0))
    with compilations() as first:
        state, _ = federation.run_round(state)
        federation.evaluate(state)
    assert any("train_round" in compiled for compiled in first)
    with compilations() as later:
        for _ in range(3):
            state, _ = federation.run_round(state)
            federation.evaluate(state)
    assert later == []


@pytest.mark.parametrize("cohort_size", [None, 4])
@pytest.mark.parametrize("chunk", [1, 3])
def test_message_is_the_mean_weighted_by_training_examples(cohort_size, chunk):
    data = dataset()
    sizes = data.splits["train"].sizes

    def client_update(received, client, window, key):
        first = window.x[window.start]
        message = {"one": jax.numpy.ones(()), "first": first}
        metrics = {"loss": Mean(first[0], jax.numpy.ones(()))}
        return ClientOutput(message, client + 1, (), window.size, metrics)

    algorithm = Algorithm(
        init=lambda params, key: (
            {"one": jax.numpy.zeros(()), "first": jax.numpy.zeros(4)},
            jax.numpy.zeros((), int),
        ),
        client_update=client_update,
        server_update=lambda server, aggregate: aggregate.value,
        personal_params=lambda received, client, data: (),
        global_params=None,
    )
    federation = federate(
        algorithm, MODEL, data, cohort_size=cohort_size, client_chunk=chunk, mesh=mesh(2)
    )
    state = federation.init(jax.random.key(0))
    for _ in range(3):
        state, result = federation.run_round(state)
        cohort = result.cohort
        first = data.x[data.splits["train"].indices[data.splits["train"].offsets[cohort]]]
        expected = np.average(first, axis=0, weights=sizes[cohort])
        assert float(state.server["one"]) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(state.server["first"], expected, rtol=1e-5)
        assert float(result.metrics["loss"]) == pytest.approx(first[:, 0].mean(), rel=1e-5)
    turns = sum(int(federation.client_state(state, k)) for k in range(data.num_clients))
    assert turns == 3 * federation.cohort_size


def test_drop_last_ends_an_epoch_before_the_batch_that_is_not_full():
    """As a limit of two steps does where every client has two full batches and a bit."""
    found = []
    for options in ({"drop_last": True}, {"participation": uniform(deadline=2)}, {}):
        algorithm = ALGORITHMS["pflalign"](batch_size=3)
        federation = federate(algorithm, MODEL, dataset((7, 8, 7)), mesh=mesh(1), **options)
        state, result = federation.run_round(federation.init(jax.random.key(0)))
        found.append((int(result.work.useful), host(state.server)))
    assert [steps for steps, _ in found] == [6, 6, 9]
    jax.tree.map(np.testing.assert_array_equal, found[0][1], found[1][1])


@pytest.mark.parametrize(("devices", "chunk"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_work_is_counted(devices, chunk):
    sizes = dataset().splits["train"].sizes
    algorithm = ALGORITHMS["fedavg"](batch_size=5)
    federation = federate(algorithm, MODEL, dataset(), client_chunk=chunk, mesh=mesh(devices))
    _, result = federation.run_round(federation.init(jax.random.key(0)))
    steps = np.sort(-(-sizes // 5))[::-1]
    work = jax.tree.map(int, result.work)
    assert work.useful == steps.sum()
    if devices == 1:
        turns = sum(steps[i] for i in range(0, len(steps), chunk))  # the largest come first
        assert (work.slowest, work.all_devices, work.executed) == (turns, turns, turns * chunk)
    else:
        assert work.all_devices / 2 <= work.slowest < work.all_devices
        assert work.executed == chunk * work.all_devices >= work.useful


def test_evaluate_changes_nothing():
    federation = federate(ALGORITHMS["pflalign"](), MODEL, dataset(), mesh=mesh(2))
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    before = host(state._replace(key=None))
    first, again = federation.evaluate(state), federation.evaluate(state)
    jax.tree.map(np.testing.assert_array_equal, host(state._replace(key=None)), before)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first["test/personal/adapted"].accuracy.tolist() != (
        first["test/personal/received"].accuracy.tolist()
    )


def test_scores_equal_those_of_the_personal_models():
    data = dataset()
    federation = federate(ALGORITHMS["pflalign"](), MODEL, data, mesh=mesh(8))
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    scores = federation.evaluate(state, adapt=False)["test/personal/received"]
    test = data.splits["test"]
    for k in range(data.num_clients):
        own = test.indices[test.offsets[k] : test.offsets[k + 1]]
        logits = MODEL.apply(federation.personal_params(state, k), (data.x[own] - 0.5) / 2)
        hits = np.asarray(logits).argmax(1) == data.y[own]
        assert scores.accuracy[k] == pytest.approx(hits.mean())
        losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(own)), data.y[own]]
        assert scores.loss[k] == pytest.approx(losses.mean(), rel=1e-4)


def test_round_reduces_the_message_and_gathers_nothing():
    federation = federate(ALGORITHMS["pflalign"](), MODEL, dataset(), mesh=mesh(8))
    with compilations():
        state = federation.init(jax.random.key(0))
    text = federation.lower_round(state).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cohort_size": 8}, "cohort_size=8 .* 7 clients"),
        ({"cohort_size": 0}, "cohort_size=0"),
        ({"client_chunk": 0}, "client_chunk=0"),
        ({"mesh": jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))}, "'data'"),
    ],
)
def test_impossible_federations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        federate(ALGORITHMS["fedavg"](), MODEL, dataset(), **options)


def test_unknown_client_is_refused():
    federation = federate(ALGORITHMS["fedavg"](), MODEL, dataset(), mesh=mesh(1))
    state = federation.init(jax.random.key(0))
    with pytest.raises(ValueError, match="client 7 does not exist"):
        federation.client_state(state, 7)
