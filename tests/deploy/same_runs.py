"""A run on nodes and its simulation, compared."""

import jax
import numpy as np
import pytest

from pflalign_jax.deploy import node_files
from pflalign_jax.runs import files
from pflalign_jax.runs.build import build
from pflalign_jax.runs.checkpoints import load_checkpoint

UNEQUAL = ("second", "peak", "executed", "slowest")
"""Parts of names of columns that may differ."""


def assert_same_rows(simulated, deployed):
    assert len(simulated) == len(deployed)
    for a, b in zip(simulated, deployed, strict=True):
        assert list(a) == list(b)
        for name in (name for name in a if not any(part in name for part in UNEQUAL)):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), name


def assert_same_scores(simulated, deployed):
    """Compare every client's scores."""
    assert list(simulated) == list(deployed)
    for name, scores in simulated.items():
        assert (scores.examples == deployed[name].examples).all()
        for metric, values in scores.values.items():
            np.testing.assert_allclose(values, deployed[name].values[metric], atol=1e-5)


def assert_same_states(config, simulated, deployed, nodes, rounds=3, run_name="*"):
    """Compare the server's state, and every client's in the files of its node.

    ``nodes`` are the directories of the clients' nodes, in the clients' order, ``run_name`` is what
    the server calls the run.
    """
    federation = build(config).federation
    one, _ = load_checkpoint(simulated / files.CHECKPOINTS, rounds, federation.shapes)
    two, _ = load_checkpoint(deployed / files.CHECKPOINTS, rounds, federation.shapes)
    _assert_same(one.server, two.server)
    assert two.clients.positions is None  # nothing of clients is on the server
    state = federation.restore(one)
    for k, node in enumerate(nodes):
        (seen,) = node.glob(f"{run_name}/{node_files.SEEN}")
        found = node_files.read_tree(
            seen.parent, node_files.STATE, rounds, federation.shapes.client
        )
        _assert_same(federation.client_state(state, k), found)


def _assert_same(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-5)
