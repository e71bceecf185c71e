"""Checkpoints: what is saved is loaded, the latest and the best are kept, damage is noticed."""

import gc
import json
import resource
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pflalign_jax.federated.snapshot import ClientSnapshot, Snapshot
from pflalign_jax.runs.checkpoints import (
    CheckpointError,
    checkpoint_path,
    checkpoint_rounds,
    load_checkpoint,
    open_checkpoints,
    read_about,
    set_aside,
)

pytestmark = [  # what orbax's own threads and tasks leave when they fail
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collected():
    """Let no later test find what a failed one left."""
    yield
    gc.collect()


class State(NamedTuple):
    w: dict
    none: tuple = ()


def saved(r, positions=((0, 2), (1, -1))):
    server = State({"a/b": jnp.arange(3.0) + r, "bf": jnp.ones((2, 2), jnp.bfloat16) * r})
    clients = {"v": jnp.arange(8.0).reshape(2, 2, 2) * r, "empty": jnp.zeros((2, 2, 0))}
    key = jax.random.key_data(jax.random.key(7))
    table = np.array(positions, np.int32)
    return Snapshot(r, key, "fry", server, ClientSnapshot(table, clients))


SHAPES = jax.eval_shape(
    lambda: (saved(1).server, jax.tree.map(lambda a: a[0, 0], saved(1).clients.states))
)


def assert_loaded(directory, r):
    found, about = load_checkpoint(directory, r, SHAPES)
    wanted = saved(r)
    assert about == {"offset": r} and (found.round, found.key_impl) == (r, "fry")
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found[1:2] + found[3:]),
                    jax.tree.leaves(wanted[1:2] + wanted[3:]), strict=True):  # fmt: skip
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def write(directory, scores, keep=2):
    checkpoints = open_checkpoints(directory, keep)
    for r, score in scores.items():
        checkpoints.save(saved(r), {"offset": r}, score)
    rounds = checkpoints.wait()
    checkpoints.close()
    return rounds


def test_what_is_saved_is_loaded(tmp_path):
    write(tmp_path, {3: 0.5})
    assert_loaded(tmp_path, 3)
    about = read_about(tmp_path, 3)
    assert about["score"] == 0.5 and "jax" in about["versions"]
    assert ["server.w.a/b", [3], "float32"] in [leaf[:3] for leaf in about["leaves"]]


def test_the_latest_and_the_earliest_best_are_kept(tmp_path):
    scores = {1: 0.1, 2: 0.7, 3: None, 4: 0.7, 5: None, 6: 0.2}
    assert write(tmp_path, scores) == checkpoint_rounds(tmp_path) == [2, 5, 6]
    assert_loaded(tmp_path, 2)
    assert write(tmp_path, {7: 0.9, 8: None}, keep=1) == [7, 8]


def test_the_best_is_kept_after_a_restart(tmp_path):
    assert write(tmp_path, {1: 0.1, 2: 0.9, 3: None}) == [2, 3]
    assert write(tmp_path, {4: 0.8, 5: None, 6: 0.9}) == [2, 5, 6]
    assert write(tmp_path, {7: 0.95, 8: None, 9: None}) == [7, 8, 9]


def test_states_in_a_store_are_not_in_the_checkpoint(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(saved(1)._replace(clients=ClientSnapshot(None, ())), {"offset": 1})
    checkpoints.close()
    assert load_checkpoint(tmp_path, 1, SHAPES)[0].clients == ClientSnapshot(None, ())


def test_truncated_and_changed_files_are_noticed_or_do_not_matter(tmp_path):
    write(tmp_path / "good", {3: 0.5})
    files = [p.relative_to(tmp_path / "good") for p in (tmp_path / "good").rglob("*")]
    refused = 0
    for number, file in enumerate(files):
        bad = tmp_path / f"bad{number}"
        shutil.copytree(tmp_path / "good", bad)
        if not (bad / file).is_file():
            continue
        content = (bad / file).read_bytes()
        for damaged in (content[: len(content) // 2], flipped(content)):
            (bad / file).write_bytes(damaged)
            try:
                assert_loaded(bad, 3)
            except CheckpointError as error:
                assert str(checkpoint_path(bad, 3)) in str(error)
                refused += 1
    assert refused >= 7


def flipped(content):
    return content[: len(content) // 2] + bytes([255 ^ b for b in content[len(content) // 2 :]])


def test_a_missing_part_is_noticed(tmp_path):
    write(tmp_path, {3: 0.5})
    shutil.rmtree(checkpoint_path(tmp_path, 3) / "state")
    with pytest.raises(CheckpointError, match="00000003 is damaged"):
        load_checkpoint(tmp_path, 3, SHAPES)


def test_another_version_and_foreign_ones_are_refused_by_name(tmp_path):
    write(tmp_path, {3: 0.5, 4: 0.6})
    meta = checkpoint_path(tmp_path, 3) / "meta" / "metadata"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "pflalign_jax_checkpoint": 99}))
    with pytest.raises(CheckpointError, match=r"00000003 has format 99, .*reads format 1; .*jax"):
        load_checkpoint(tmp_path, 3, SHAPES)
    meta.write_text(json.dumps({**content, "score": 0.7}))
    with pytest.raises(CheckpointError, match="00000003 is damaged: meta does not match"):
        load_checkpoint(tmp_path, 3, SHAPES)
    meta.write_text(json.dumps({"step": 3}))
    with pytest.raises(CheckpointError, match="00000003 is damaged or was not written by pFL"):
        load_checkpoint(tmp_path, 3, SHAPES)
    checkpoint_path(tmp_path, 4).rename(checkpoint_path(tmp_path, 5))
    with pytest.raises(CheckpointError, match="00000005 is of round 4"):
        load_checkpoint(tmp_path, 5, SHAPES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda server, client: (server._replace(none=jnp.ones(2)), client), "server.none is miss"),
        (lambda server, client: (server._replace(w={}), client), r"expected is nothing"),
        (lambda server, client: (server, {**client, "v": jnp.ones(5)}), r"v is float32\[2\] there"),
    ],
)
def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path, change, message):
    write(tmp_path, {3: 0.5})
    shapes = change(*SHAPES)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, 3, shapes)


def test_unusable_ones_are_set_aside(tmp_path):
    write(tmp_path, {3: 0.5, 4: None})
    assert set_aside(tmp_path, 4).name == "unusable-00000004"
    assert checkpoint_rounds(tmp_path) == [3]
    assert write(tmp_path, {4: None}) == [3, 4]
    assert set_aside(tmp_path, 4).name == "unusable-00000004-1"


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints cannot take a checkpoint"):
        open_checkpoints(tmp_path / "file" / "checkpoints")


def test_a_full_disk_is_told_once_and_the_one_before_stays_whole(tmp_path, caplog):
    """The system refuses to write more than 100 kB to a file, as it refuses on a full disk."""
    write(tmp_path, {1: None})
    big = saved(2)._replace(server=State({"w": np.random.default_rng(0).normal(size=100_000)}))
    checkpoints = open_checkpoints(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot take a checkpoint; .*Make room"):
            checkpoints.save(big, {"offset": 2})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [record for record in caplog.records if record.exc_info]
    assert checkpoint_rounds(tmp_path) == [1]
    assert_loaded(tmp_path, 1)
    assert write(tmp_path, {2: None}) == [1, 2]
