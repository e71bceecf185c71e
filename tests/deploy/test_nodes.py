"""Runs on nodes: the same numbers as simulations, and what nodes and servers refuse.

Nodes are in this process; `test_flower.py` has them in others.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from in_process import Postman, introductions, open_nodes, small
from same_runs import assert_same_rows, assert_same_scores, assert_same_states

from pflalign_jax import algorithms
from pflalign_jax.deploy import RefusedError, node_files, train_on_nodes
from pflalign_jax.deploy.compact import compact, expanded
from pflalign_jax.deploy.federation import greeting
from pflalign_jax.deploy.introductions import dataset_of, introduction
from pflalign_jax.deploy.node import open_node
from pflalign_jax.deploy.packets import Packet, unpacked
from pflalign_jax.runs import ConfigError, RunError, StoppedError, files, load, round_files, run


def deploy(config, path, nodes=None, postman=None, **options):
    nodes = open_nodes(config, path / "nodes") if nodes is None else nodes
    postman = Postman(nodes) if postman is None else postman
    outcome = train_on_nodes(
        config, path / "run", introductions(config, nodes), postman, say=str, **options
    )
    return outcome, nodes, postman


def assert_same(simulated, deployed):
    assert_same_rows(simulated.rows, deployed.rows)
    assert_same_scores(simulated.scores, deployed.scores)


def places(nodes):
    return [node.directory for node in nodes]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a config, its simulation, and its run on nodes."""
    path, config = tmp_path_factory.mktemp("trained"), small()
    simulated = run(config, path / "simulated", say=str)
    return path, config, simulated, *deploy(config, path)


def test_a_run_on_nodes_has_the_numbers_of_its_simulation(trained):
    path, config, simulated, deployed, nodes, _ = trained
    assert_same(simulated, deployed)
    assert_same_states(config, path / "simulated", path / "run", places(nodes))
    # clients.csv to the digit.
    one, two = ((path / name / files.CLIENTS).read_text() for name in ("simulated", "run"))
    assert one == two


def test_nothing_of_a_client_s_state_is_sent(trained):
    _, _, _, _, nodes, postman = trained
    private = set()
    for node in nodes:
        (directory,) = node.directory.glob("*/")
        for file in directory.glob("state-*.npz"):
            with np.load(file) as arrays:  # the direction is what a client sends, by definition
                names = [name for name in arrays if not name.startswith("state.direction")]
                private |= {arrays[name].tobytes() for name in names if arrays[name].size > 1}
    assert len(private) > 3
    for kind, _, packet in postman.answered:
        names = {name.split(".")[0] for name in packet.arrays}
        assert names == ({"message", "metrics"} if kind == "train" else set())
        assert not private & {a.tobytes() for a in packet.arrays.values()}
        assert {name.split("/")[0] for name in packet.values} <= {
            "round", "steps", "nonfinite", "score",
        }  # fmt: skip


def test_who_answered_and_how_many_bytes_is_written(trained):
    path, _, _, deployed, _, _ = trained
    rows = round_files.read_nodes(path / "run")
    assert [(row["kind"], row["round"]) for row in rows] == [
        (kind, done) for done in (1, 2, 3) for kind in ("train", "evaluate")
    ]
    assert all(row["counted"] == ["0", "1", "2"] for row in rows)
    predicted = deployed.experiment.federation.bytes_per_round
    metrics = 3 * 8  # a sum and a weight of the loss
    assert rows[0]["bytes_up"] == predicted.up + metrics
    assert rows[0]["bytes_down"] == predicted.down


def test_the_run_s_directory_can_be_loaded_and_personal_models_predict_on_their_nodes(trained):
    path, config, _, _, nodes, _ = trained
    at_server, simulated = load(path / "run"), load(path / "simulated")
    x = nodes[1].dataset.x[:5]
    np.testing.assert_allclose(at_server.predict(x), simulated.predict(x), atol=1e-5)
    with pytest.raises(RunError, match="was run on nodes, which keep their clients' states"):
        at_server.predict(x, client="1")
    again = open_node(config, nodes[1].directory, "1")
    np.testing.assert_allclose(again.predict(x), simulated.predict(x, client="1"), atol=1e-5)
    data = json.loads((path / "run" / files.DATA).read_text())
    assert "label_counts" not in data and "features_crc32_all" not in data


def ask(trained, kind="train", **changes):
    """Return what the first node says to the last request of a kind, with changes."""
    _, _, _, _, nodes, postman = trained
    request = [p for k, client, p in postman.sent if (k, client) == (kind, 0)][-1]
    arrays = dict(request.arrays) | changes.pop("arrays", {})
    return nodes[0].answer(kind, Packet(arrays, {**request.values, **changes}))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"config": "0" * 64}, "the server runs another config"),
        ({"format": 2}, "format 2, this node's 1"),
        ({"client_id": 1}, "the request is for client id 1, this is 0"),
        ({"round": 1, "state_round": 1}, "round 3 was asked for before: it is an old one"),
        ({"start": 2**62, "state_round": 4}, "state_round=4 is not possible in round 2"),
        ({"start": 2**62, "round": 9, "state_round": 9}, "has no state of round 9, but of rounds"),
        ({"run": "../up"}, "is no name of a run"),
        ({"round": "2"}, "round='2' is not allowed in a packet; it must be int"),
        ({"start": 2**62, "score": 1}, "score=1 is not allowed in a packet; it must be bool"),
        ({"start": 2**62, "held": ["x"]}, "held='x' is not allowed in a packet; it must be int"),
        ({"start": 2**62, "num_clients": 0}, "num_clients=0 is not possible"),
    ],
)
def test_a_node_refuses_a_request_that_cannot_be(trained, change, reason):
    assert reason in ask(trained, **change).values["refused"]


def test_a_node_refuses_step_sizes_that_its_run_does_not_have(trained):
    more = {"adapt_names": ["learning_rate"], "adapt_values": [0.1], "start": 2**62}
    answer = ask(trained, "evaluate", **more)
    assert "adapt_names=['learning_rate'] are no hyperparameters" in answer.values["refused"]


@pytest.mark.parametrize("values", [20.0, [20.0], ["a", "b", "c"], [1.0, 0.5, 0.5]])
def test_scores_that_cannot_be_are_refused(trained, values):
    _, _, _, deployed, _, postman = trained
    answer = next(p for kind, _, p in postman.answered if kind == "evaluate")
    bad = Packet({}, {**answer.values, "score/test/global": values})
    with pytest.raises(RefusedError, match="score/test/global="):
        deployed.experiment.federation._scored(answer.values["round"], 0, bad)


@pytest.mark.parametrize(
    "change",
    [{"sizes": ["a", "b", "c"]}, {"sizes": [0, 1, 1]}, {"client_id": -1}, {"task": "x"},
     {"features": ["object", "8"]}, {"targets": ["int32", "x"]}, {"refused": "no"}],
)  # fmt: skip
def test_introductions_that_cannot_be_are_refused(trained, change):
    _, _, _, _, nodes, _ = trained
    answer = nodes[0].answer("describe", greeting(nodes[0].hash))
    with pytest.raises(RefusedError):
        introduction(Packet(answer.arrays, {**answer.values, **change}))


def test_a_node_refuses_arrays_that_do_not_fit_its_config(trained):
    postman = trained[-1]
    request = [p for kind, _, p in postman.sent if kind == "train"][-1]
    name, array = next((n, a) for n, a in request.arrays.items() if a.ndim == 2)
    broken = array.copy()
    broken[0, 0] = np.nan
    for bad, reason in {
        "shape": (array[1:], f"{name} is float32"),
        "type": (array.astype(np.float64), f"{name} is float64"),
        "number": (broken, f"{name} holds nan; all of its numbers must be finite"),
    }.values():
        answer = ask(trained, start=2**62, arrays={name: bad})
        assert reason in answer.values["refused"]
    assert "refused" not in ask(trained, start=2**62, arrays={"further": array}).values
    more = ask(trained, start=2**62, arrays={"received.further": array}).values["refused"]
    assert "received.further is float32" in more and "expected is nothing" in more


def test_nodes_that_do_not_go_together_are_refused(trained):
    _, config, _, _, nodes, _ = trained
    first, second, _ = introductions(config, nodes)
    for other, reason in (
        (second._replace(client_id=0), "two nodes have client_id=0"),
        (second._replace(client="0"), "two nodes have client='0'"),
        (second._replace(mean=np.float32(3)), "normalise with another mean"),
        (
            second._replace(about={**second.about, "features": ["uint8", "9"]}),
            "client 1 has features=\\['uint8', '9'\\], client 0 has",
        ),
    ):
        with pytest.raises(RefusedError, match=reason):
            dataset_of([first, other])


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset__normalise": "train"},
        {"participation__dropout": 0.5},
        {"generate_every": 1},
        {"messages__attack": "sign_flip", "messages__corrupted": 1},
    ],
)
def test_what_only_a_simulation_can_do_is_refused(tmp_path, fields):
    with pytest.raises(ConfigError, match="does not go with real clients"):
        open_node(small(**fields), tmp_path, "0")


def test_a_node_names_a_client_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="client='9' is not in digits, which has 0, 1, 2"):
        open_node(small(), tmp_path, "9")
    with pytest.raises(ConfigError, match="client is not set, and digits has 3 clients"):
        open_node(small(), tmp_path)


def test_a_run_goes_on_and_nodes_go_back_with_it(trained, tmp_path):
    """Stopped after round 2; the checkpoint of round 2 is lost, so it goes on from round 1."""
    path, config, simulated, _, old, _ = trained
    nodes = [node_at(node, tmp_path / "nodes" / node.client) for node in old]
    turns = iter([0, 15])
    with pytest.raises(StoppedError):
        deploy(config, tmp_path, nodes, stop=lambda: next(turns))
    (state,) = (tmp_path / "run" / "checkpoints").glob("*2/state")
    state.rename(state.with_name("lost"))
    deployed, nodes, postman = deploy(config, tmp_path, nodes)
    asked = [p.values["round"] for kind, k, p in postman.sent if (kind, k) == ("train", 0)]
    assert asked == [1, 2]
    assert_same(simulated, deployed)
    assert_same_states(config, path / "simulated", tmp_path / "run", places(nodes))
    trains = [
        row["round"] for row in round_files.read_nodes(tmp_path / "run") if row["kind"] == "train"
    ]
    assert trains == [1, 2, 3]


def node_at(node, directory):
    """Return the node with other files, and the programs that are compiled already."""
    moved = dataclasses.replace(node, directory=directory)
    moved.__dict__["federation"] = node.federation
    return moved


def test_who_does_not_answer_or_answers_wrongly_is_left_out(trained, tmp_path):
    _, config, _, _, old, _ = trained
    nodes = [node_at(node, tmp_path / "nodes" / node.client) for node in old]
    postman = Postman(nodes)

    def change(kind, k, packet):
        done = packet.values["round"]
        if kind == "train" and (done, k) == (0, 0):
            return None  # lost
        if kind == "train" and (done, k) == (1, 1):
            return packet._replace(values={**packet.values, "round": 0})
        if kind == "train" and (done, k) == (2, 2):
            arrays = {n: np.full_like(a, np.nan) for n, a in packet.arrays.items()}
            return packet._replace(arrays=arrays)
        return packet

    postman.on_answer = change
    deployed, _, _ = deploy(config, tmp_path, nodes, postman)
    rows = [row for row in round_files.read_nodes(tmp_path / "run") if row["kind"] == "train"]
    assert [row["counted"] for row in rows] == [["1", "2"], ["0", "2"], ["0", "1"]]
    assert rows[0]["missing"] == ["0"]
    assert rows[1]["refused"] == {"1": "the answer is of round 0, not of round 1"}
    assert rows[2]["nonfinite"] == ["2"]
    assert [row["clients/answered"] for row in deployed.rows] == [2, 2, 3]
    # Who did not count goes on from the state before.
    begun = [
        (k, p.values["state_round"])
        for kind, k, p in postman.sent
        if kind == "train" and p.values["round"] == 2
    ]
    assert begun == [(0, 2), (1, 1), (2, 2)]


def test_the_cohort_is_drawn_from_those_who_are_there(trained, tmp_path):
    _, config, _, _, old, _ = trained
    nodes = [node_at(node, tmp_path / "nodes" / node.client) for node in old]
    postman = Postman(nodes)
    postman.away = {1}
    deployed, _, _ = deploy(config, tmp_path, nodes, postman)
    assert {k for _, k, _ in postman.sent} == {0, 2}
    assert [row["clients/invited"] for row in deployed.rows] == [2, 2, 2]
    assert (deployed.scores["test/global"].examples > 0).tolist() == [True, False, True]


SAME = {
    "states of half precision": {"algorithm__memory_dtype": "bfloat16"},
    "fedavg": {"algorithm__name": "fedavg", "algorithm__learning_rate": 0.1},
    "ditto": {"algorithm__name": "ditto"},
    "fedper": {"algorithm__name": "fedper"},
    "scaffold": {"algorithm__name": "scaffold", "algorithm__learning_rate": 0.1},
    "fedamp, for each its own": {"algorithm__name": "fedamp", "algorithm__learning_rate": 0.1},
    "fedpac, gathered": {
        "algorithm__name": "fedpac", "algorithm__learning_rate": 0.1, "model__name": "mlp",
    },
    "fedavgm": {"algorithm__name": "fedavgm", "algorithm__learning_rate": 0.1},
    "a cohort": {"cohort_size": 2, "participation__name": "weighted"},
    "a deadline": {"participation__deadline": 2},
    "schedule": {"learning_rate_schedule": "cosine"},
    "step sizes of adaptation": {"adapt_learning_rate": (0.1, 1.0)},
    "clipped, compressed": {
        "messages__clip": 0.5, "messages__compression": "top_k", "messages__fraction": 0.2,
        "messages__error_feedback": True,
    },
    "rounded": {"messages__compression": "int8"},
    "low rank": {"messages__compression": "low_rank", "messages__rank": 2},
    "norm bound": {"messages__robust": "norm_bound", "messages__max_norm": 0.1},
    "median": {"messages__robust": "coordinate_median"},
    "private": {"messages__private_clip": 0.1, "messages__noise_multiplier": 0.5},
    "diagnostics": {"diagnostics": True},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_other_runs_have_the_numbers_of_their_simulations(tmp_path, name):
    config = small(**SAME[name])
    simulated = run(config, tmp_path / "simulated", say=str)
    deployed, nodes, _ = deploy(config, tmp_path)
    assert_same(simulated, deployed)
    if "cohort_size" not in SAME[name]:
        assert_same_states(config, tmp_path / "simulated", tmp_path / "run", places(nodes))


NEED_ADAPTERS = ("ffa_lora", "fedsa_lora", "rolora", "flora")
"""Of a pretrained model, which a small run has not."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in algorithms.NAMES if n not in NEED_ADAPTERS])
def test_every_algorithm_has_the_numbers_of_its_simulation(tmp_path, name):
    fields = {"algorithm__norms": ("Dense_0",)} if name == "fedbn" else {}
    config = small(
        rounds=2, model__name="mlp", model__hidden=(8,), algorithm__name=name,
        algorithm__learning_rate=0.05, **fields,
    )  # fmt: skip
    simulated = run(config, tmp_path / "simulated", say=str)
    deployed, nodes, _ = deploy(config, tmp_path)
    assert_same(simulated, deployed)
    assert_same_states(config, tmp_path / "simulated", tmp_path / "run", places(nodes), rounds=2)


def test_noise_of_a_node_is_its_own(trained, tmp_path):
    """The server knows the run's seed: it must not be able to draw the noise again."""
    request = next(p for kind, _, p in trained[-1].sent if kind == "train")
    other = request._replace(values={**request.values, "start": 2**62})
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    secrets = [
        node_files.secret_for(directory, asked)
        for directory, asked in ((one, request), (one, request), (one, other), (two, request))
    ]
    assert secrets[0] == secrets[1] and len(set(secrets)) == 3
    assert (one / "secret").stat().st_mode & 0o077 == 0
    node = trained[4][0]
    federation = node.federation(3)
    received = unpacked(request, "received", federation.shapes.server)
    state = federation.first_state(received)
    messages = [
        jax.tree.leaves(federation.train(0, received, state, True, secret).message)
        for secret in (b"", secrets[0], secrets[2])
    ]
    # Without noise the order of minibatches is what is drawn.
    kernels = [next(a for a in leaves if a.ndim == 2) for leaves in messages]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])


def test_no_two_requests_have_the_same_noise(tmp_path):
    """Also not two that differ only in where one array ends and the next one begins."""
    one, two = (np.frombuffer(text, np.uint8) for text in (b"model 1.", b"model 2."))
    rest = b"received uint8 (8,)model 1."
    inside = b" uint8 (1,)x" + b"received uint8 (8,)model 2." + b"z uint8 (%d,)" % len(rest)
    outside = {"a": np.frombuffer(inside, np.uint8), "received": one}
    inside_out = {
        f"a uint8 ({len(inside)},)": np.frombuffer(b"x", np.uint8),
        "received": two,
        "z": np.frombuffer(rest, np.uint8),
    }
    secrets = {
        node_files.secret_for(tmp_path, Packet(arrays, {})) for arrays in (outside, inside_out)
    }
    assert len(secrets) == 2


def test_compressed_arrays_are_sent_short_and_come_back_as_they_were():
    rng = np.random.default_rng(0)
    few = np.where(rng.random((50, 20)) < 0.1, rng.normal(size=(50, 20)), 0).astype(np.float32)
    few[0, :2] = np.float32(-0.0), np.float32(np.nan)
    levels = (rng.integers(-127, 128, (50, 20)) * np.float32(0.01)).astype(np.float32)
    arrays = {"message.few": few, "message.levels": levels, "message.empty": few[:0]}
    for compression, names in (
        ("top_k", {"message.few!index", "message.few!value", "message.levels", "message.empty"}),
        ("int8", {"message.few", "message.levels!code", "message.levels!table", "message.empty"}),
        ("low_rank", set(arrays)),
        (None, set(arrays)),
    ):
        sent = compact(arrays, compression)
        if compression == "int8":  # few enough values as well
            names = names - {"message.few"} | {"message.few!code", "message.few!table"}
        assert set(sent) == names
        back = expanded(sent, arrays)
        assert {n: a.tobytes() for n, a in back.items()} == {
            n: a.tobytes() for n, a in arrays.items()
        }
    assert sum(a.nbytes for a in compact({"m": few}, "top_k").values()) < 0.25 * few.nbytes


@pytest.mark.parametrize(
    "parts, reason",
    [
        ({"m!index": np.array([2, 1], np.int32), "m!value": np.ones(2)}, "positions must ascend"),
        ({"m!index": np.array([6], np.int32), "m!value": np.ones(1)}, r"must ascend in 0\.\.5"),
        ({"m!index": np.array([1.0]), "m!value": np.ones(1)}, "are no positions of values"),
        (
            {"m!code": np.full(6, 9, np.uint8), "m!table": np.ones(3)},
            "code 9 is not in a table of 3",
        ),
        ({"m!code": np.zeros(5, np.uint8), "m!table": np.ones(3)}, "are no codes of 6 values"),
    ],
)
def test_short_forms_that_cannot_be_are_refused(parts, reason):
    with pytest.raises(RefusedError, match=reason):
        expanded(parts, {"m": np.zeros((2, 3), np.float32)})
