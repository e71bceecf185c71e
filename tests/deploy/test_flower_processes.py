"""Runs over Flower's own processes: a SuperLink and three SuperNodes on this machine."""

import json
import signal
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what Flower imports
    pytest.importorskip("flwr", reason="needs Flower: pip install 'pflalign-jax[flower]'")

from flower_processes import MOST, Cluster
from in_process import small
from same_runs import assert_same_rows, assert_same_states

from pflalign_jax.deploy.app_files import write_app
from pflalign_jax.runs import files, round_files, run

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    try:
        cluster.start_link()
        for client in "012":
            cluster.start_node(client)
        yield cluster
    finally:
        cluster.close()


def app_of(cluster, name, **fields):
    """Return an app, the directory of its run and that of its simulation, which is done here."""
    config = small(eval_every=3, **fields)
    place = cluster.path / name
    run(config, place / "simulated", say=str)
    app = write_app(place / "app", config, place / "run", 3)
    return config, app, place / "run", place / "simulated"


def rows_of(workdir):
    """Return the rows of who answered so far; the last may still be half written."""
    path = workdir / files.NODES
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def trained(workdir, rounds):
    return lambda: any(row["round"] >= rounds for row in rows_of(workdir))


def finish(cluster, workdir):
    cluster.wait_for(lambda: (workdir / files.SUMMARY).exists(), f"the end of {workdir}")
    cluster.processes.pop("run").wait(timeout=MOST)


def assert_same(cluster, config, workdir, simulated):
    assert_same_rows(round_files.read_rows(simulated), round_files.read_rows(workdir))
    one, two = ((place / files.CLIENTS).read_text() for place in (simulated, workdir))
    assert one == two
    name = json.loads((workdir / files.DEPLOYMENT).read_text())["run"]
    nodes = [cluster.path / "nodes" / client for client in "012"]
    assert_same_states(config, simulated, workdir, nodes, run_name=name)


def test_three_methods_have_the_numbers_of_their_simulations(cluster):
    for name in ("pflalign", "ditto", "fedper"):
        config, app, workdir, simulated = app_of(cluster, name, algorithm__name=name)
        cluster.run(app)
        finish(cluster, workdir)
        assert_same(cluster, config, workdir, simulated)


def test_a_node_that_is_killed_in_round_2_goes_on_with_its_state(cluster):
    config, app, workdir, simulated = app_of(cluster, "kill")
    cluster.run(app)
    cluster.wait_for(trained(workdir, 1), "round 1")
    cluster.stop("node1", signal.SIGKILL)
    cluster.start_node("1")
    finish(cluster, workdir)
    assert all(row["counted"] == ["0", "1", "2"] for row in rows_of(workdir))
    assert_same(cluster, config, workdir, simulated)


def test_a_run_goes_on_after_its_superlink_was_killed(cluster):
    config, app, workdir, simulated = app_of(cluster, "link")
    cluster.run(app)
    cluster.wait_for(trained(workdir, 1), "round 1")
    cluster.stop("link", signal.SIGKILL)
    cluster.stop("run")
    cluster.start_link()
    cluster.run(app)
    finish(cluster, workdir)
    assert_same(cluster, config, workdir, simulated)
    assert [row["round"] for row in rows_of(workdir)] == [1, 2, 3, 3]
