"""The apps for Flower, in this process over Flower's own messages."""

import io
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what Flower imports
    pytest.importorskip("flwr", reason="needs Flower: pip install 'pflalign-jax[flower]'")
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.serverapp import Grid
    from flwr.supercore.task_identity import TaskIdentity

from in_process import small
from same_runs import assert_same_rows

from pflalign_jax.deploy.flower import client_app, server_app
from pflalign_jax.deploy.flower_messages import content_of, packet_of
from pflalign_jax.deploy.flower_nodes import NodesError
from pflalign_jax.deploy.packets import Packet, RefusedError
from pflalign_jax.runs import ConfigError, files, round_files, run

SETTINGS = {"num-clients": 3, "deadline": 60, "wait": 0}


def copied(message):
    """Return a message as it arrives at the other end."""
    return message_from_proto(message_to_proto(message))


class InProcessGrid(Grid):
    """Nodes that answer at once, each an app with its ``--node-config``."""

    def __init__(self, nodes):
        self.nodes, self.answers, self.silent = nodes, {}, set()

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *arguments, **more):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        sent = []
        for number, message in enumerate(messages, len(self.answers)):
            message.metadata.__dict__["_message_id"] = name = f"message {number}"
            sent.append(name)
            self.answers[name] = []
            node = message.metadata.dst_node_id
            if node not in self.silent:
                app, config = self.nodes[node]
                context = Context(1, node, config, RecordDict(), {})
                self.answers[name] = [copied(app(copied(message), context))]
        return sent

    def pull_messages(self, message_ids):
        found = [answer for name in message_ids for answer in self.answers[name]]
        for name in message_ids:
            self.answers[name] = []
        return found


def run_server(app, grid, settings):
    """Run a server's app to its end."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = (
        1  # as Flower's process does
    )
    app(grid, Context(1, 1, {}, RecordDict(), settings))


def nodes_in(path, config, first=100):
    app = client_app(config)
    return {
        first + k: (app, {"client": str(k), "directory": str(path / "nodes" / str(k))})
        for k in range(3)
    }


def test_a_run_over_flower_has_the_numbers_of_its_simulation(tmp_path):
    config = small()
    run(config, tmp_path / "simulated", say=str)
    grid = InProcessGrid(nodes_in(tmp_path, config))
    workdir = tmp_path / "run"
    run_server(server_app(config), grid, {**SETTINGS, "workdir": str(workdir)})
    assert_same_rows(round_files.read_rows(tmp_path / "simulated"), round_files.read_rows(workdir))
    one, two = ((tmp_path / name / files.CLIENTS).read_text() for name in ("simulated", "run"))
    assert one == two
    with pytest.raises(files.WorkdirError, match="holds a finished run"):
        run_server(server_app(config), grid, {**SETTINGS, "workdir": str(workdir)})


def test_a_node_that_is_started_again_is_asked_again(tmp_path):
    config = small(rounds=2)
    grid = InProcessGrid(nodes_in(tmp_path, config))
    push = grid.push_messages

    def restarted(messages):
        (message,) = messages
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "train" and node == 101 and 201 not in grid.nodes:
            grid.nodes[201] = grid.nodes[101]  # it is away with what it was asked, and comes back
            grid.silent.add(101)
        return push([message])

    grid.push_messages = restarted
    workdir = tmp_path / "run"
    run_server(server_app(config), grid, {**SETTINGS, "workdir": str(workdir)})
    for row in round_files.read_nodes(workdir):
        assert row["counted"] == ["0", "1", "2"]


def test_a_node_that_comes_back_with_its_id_is_asked_again(tmp_path):
    """With keys of nodes Flower's id goes by the key, which a restart does not change."""
    config = small(rounds=2)
    grid = InProcessGrid(nodes_in(tmp_path, config))
    push, look = grid.push_messages, grid.get_node_ids
    looks_away = []  # how often it is still not there

    def lost(messages):
        (message,) = messages
        if (message.metadata.message_type, message.metadata.dst_node_id) != ("train", 101):
            return push(messages)
        assert not any(looks_away), "it is asked while it is away"
        if looks_away:
            return push(messages)
        looks_away.extend([True, True])
        grid.silent.add(101)
        return push(messages)

    def ids():
        if any(looks_away):
            looks_away[looks_away.index(True)] = False
            return [node for node in look() if node != 101]
        grid.silent.discard(101)
        return look()

    grid.push_messages, grid.get_node_ids = lost, ids
    workdir = tmp_path / "run"
    run_server(server_app(config), grid, {**SETTINGS, "deadline": 20, "workdir": str(workdir)})
    assert looks_away == [False, False]
    for row in round_files.read_nodes(workdir):
        assert row["counted"] == ["0", "1", "2"]


def test_nodes_that_do_not_come_are_named(tmp_path):
    config = small()
    nodes = nodes_in(tmp_path, config)
    nodes[102] = (client_app(small(seed=1)), nodes[102][1])  # runs another config
    grid, settings = InProcessGrid(nodes), {**SETTINGS, "workdir": str(tmp_path / "run")}
    with pytest.raises(NodesError, match=r"2 of 3 nodes were there after 0 s \(0, 1\)"):
        run_server(server_app(config), grid, settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NodesError, match=r"2 nodes are there \(0, 1\), and num-clients=1"):
        run_server(server_app(config), grid, {**settings, "num-clients": 1})
    for wrong, reason in (
        ({"workdir": "here"}, "workdir='here' is not allowed; give an absolute path"),
        ({"deadline": "soon"}, "deadline='soon' is not allowed; set deadline to a int or float"),
    ):
        with pytest.raises(ConfigError, match=reason):
            run_server(server_app(config), grid, settings | wrong)


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], object), allow_pickle=True)
    return buffer.getvalue()


def huge():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "stype, data, reason",
    [
        ("numpy.ndarray", pickled(), "x cannot be read: x holds Python objects"),
        ("numpy.ndarray", huge(), "x cannot be read: x is float32 of shape"),
        ("numpy.ndarray", b"abc", "x cannot be read"),
        ("torch.tensor", b"abc", "x is written as 'torch.tensor'"),
    ],
)
def test_an_array_that_is_none_is_refused(stype, data, reason):
    arrays = ArrayRecord({"x": Array("float32", (1,), stype, data)})
    with pytest.raises(RefusedError, match=reason):
        packet_of(RecordDict({"arrays": arrays, "values": ConfigRecord({})}))
    with pytest.raises(RefusedError, match=r"holds \['arrays'\]; it must hold arrays and values"):
        packet_of(RecordDict({"arrays": ArrayRecord()}))


def test_packets_come_back_as_they_were():
    arrays = {"received.w": np.arange(6.0).reshape(2, 3).T, "received.n": np.array(3)}
    packet = Packet(arrays, {"round": 2**40, "held": [], "names": ["a"], "score": True, "x": 0.1})
    found = packet_of(content_of(packet))
    assert found.values == packet.values
    assert {n: (a.dtype, a.tolist()) for n, a in found.arrays.items()} == {
        n: (a.dtype, a.tolist()) for n, a in arrays.items()
    }
