"""Stores of client states: what is written is read, and a crash leaves a whole round."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pflalign_jax as pfl
from pflalign_jax.federated import disk_store as stores
from pflalign_jax.federated.client_store import HostStore, StoreError
from pflalign_jax.federated.disk_store import DiskStore, damaged_clients

FIRST = {"a": jnp.arange(3.0), "b": jnp.ones((), jnp.bfloat16), "n": jnp.zeros((), jnp.int32)}


def rows(values):
    values = np.asarray(values)
    return {
        "a": np.outer(values, [1, 2, 3]).astype(np.float32),
        "b": np.asarray(jnp.asarray(values, jnp.bfloat16)),
        "n": values.astype(np.int32),
    }


def open_store(kind, path):
    return HostStore(FIRST, 10) if kind == "host" else DiskStore(FIRST, 10, path)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [a.dtype for a in jax.tree.leaves(found)] == ["float32", "bfloat16", "int32"]


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_reads_what_was_written_and_the_first_state_elsewhere(kind, tmp_path):
    store = open_store(kind, tmp_path)
    assert store.last_round() == 0
    store.write(np.array([7, 2]), rows([70, 20]), 1)
    store.write(np.array([2, 5]), rows([21, 50]), 2)
    assert store.last_round() == 2
    assert_equal(store.read(np.array([5, 7, 2])), rows([50, 70, 21]))
    first = store.read(np.array([0, 9]))
    assert_equal(first, jax.tree.map(lambda a: np.stack([np.asarray(a)] * 2), FIRST))
    store.read(np.array([7]))["a"][:] = -1  # a copy
    assert_equal(store.read(np.array([7])), rows([70]))


def test_a_DiskStore_is_continued(tmp_path):
    DiskStore(FIRST, 10, tmp_path).write(np.array([3]), rows([30]), 4)
    again = DiskStore(FIRST, 10, tmp_path)
    assert again.last_round() == 4
    assert_equal(again.read(np.array([3])), rows([30]))


def test_a_million_clients_cost_nothing_until_written(tmp_path):
    first = {"w": np.zeros(100_000, np.float32)}
    store = DiskStore(first, 1_000_000, tmp_path)
    store.write(np.array([999_999]), {"w": np.ones((1, 100_000), np.float32)}, 1)
    assert store.read(np.array([999_999]))["w"].sum() == 100_000
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert used < 20e6


def test_a_store_of_other_shapes_is_refused(tmp_path):
    DiskStore(FIRST, 10, tmp_path)
    with pytest.raises(StoreError, match=r"another run.*'clients': 10"):
        DiskStore(FIRST, 11, tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/states cannot hold client states"):
        DiskStore(FIRST, 10, tmp_path / "file" / "states")


def test_a_record_that_is_not_whole_is_ignored(tmp_path):
    store = DiskStore(FIRST, 10, tmp_path)
    store.write(np.array([1, 2]), rows([1, 2]), 1)
    log = tmp_path / "rounds.log"
    size = log.stat().st_size
    store.write(np.array([2, 3]), rows([20, 30]), 2)
    whole = log.read_bytes()
    for cut in range(size, len(whole)):
        log.write_bytes(whole[:cut])
        again = DiskStore(FIRST, 10, tmp_path)
        assert again.last_round() == 1
        assert_equal(again.read(np.array([1, 2])), rows([1, 2]))
    log.write_bytes(whole[:-8] + b"damaged!" + bytes(400))
    again = DiskStore(FIRST, 10, tmp_path)
    again.write(np.array([2]), rows([21]), 2)
    again = DiskStore(FIRST, 10, tmp_path)
    assert again.last_round() == 2
    assert_equal(again.read(np.array([1, 2])), rows([1, 21]))


def test_a_full_disk_leaves_the_round_before(tmp_path, monkeypatch):
    store = DiskStore(FIRST, 10, tmp_path)
    store.write(np.array([1, 2]), rows([1, 2]), 1)

    def full(handle):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "_to_disk", full)
        with pytest.raises(StoreError, match=r"cannot take the client states.*disk full"):
            store.write(np.array([2, 3]), rows([20, 30]), 2)
    for found in (store, DiskStore(FIRST, 10, tmp_path)):
        assert found.last_round() == 1
        assert_equal(found.read(np.array([1, 2])), rows([1, 2]))


def test_room_does_not_grow_with_rounds(tmp_path):
    store = DiskStore(FIRST, 10, tmp_path)
    for r in range(1, 60):
        store.write(np.arange(r, r + 4) % 10, rows(np.full(4, r)), r)
        if r % 20 == 0:
            store = DiskStore(FIRST, 10, tmp_path)
    assert (tmp_path / "states.bin").stat().st_size <= (10 + 2 * 4) * (12 + 2 + 4)
    assert_equal(store.read(np.array([9, 2, 0, 1])), rows([59, 59, 59, 59]))
    assert_equal(store.read(np.array([8])), rows([58]))


def test_tables_with_nobody_in_them(tmp_path):
    for store in (HostStore(FIRST, 10), DiskStore(FIRST, 10, tmp_path)):
        table = np.array([[4, -1], [6, 9]])
        state = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), rows([40, -5, 60, 90]))
        store.write(table, state, 1)
        assert_equal(store.read(np.array([9, 4])), rows([90, 40]))
        first = np.asarray(FIRST["a"])
        np.testing.assert_array_equal(store.read(table.T)["a"][1, 0], first)


WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from pflalign_jax.federated.disk_store import DiskStore
    store = DiskStore({"w": np.zeros(20_000, np.float32)}, 8, sys.argv[1])
    print("ready", flush=True)
    for r in range(store.last_round() + 1, 100_000):
        positions = np.arange(r % 2, 8, 2)
        store.write(positions, {"w": np.full((4, 20_000), r, np.float32)}, r)
""")


def test_killed_at_any_moment_it_holds_a_whole_round(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    rounds = [0]
    for delay in (0.03, 0.11, 0.07):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            cwd=root,
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        with process:
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        store = DiskStore({"w": np.zeros(20_000, np.float32)}, 8, tmp_path)
        last = store.last_round()
        rounds.append(last)
        w = store.read(np.arange(8))["w"]
        assert (w == w[:, :1]).all()
        now, before = w[last % 2 :: 2, 0], w[(last + 1) % 2 :: 2, 0]
        assert (now == last).all() and (before == max(last - 1, 0)).all()
    assert rounds == sorted(rounds) and rounds[-1] > 0


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_changed_byte_of_a_state_is_told_with_the_client(tmp_path):
    names = [f"user {k}" for k in range(10)]
    store = DiskStore(FIRST, 10, tmp_path, names=names)
    store.write(np.array([7, 2]), rows([70, 20]), 1)
    store.hold([1])
    store.write(np.array([2]), rows([21]), 2)
    flip(tmp_path / "states.bin", 3)  # of the slot that client 7 has
    assert store.read(np.array([2, 0]))["n"].tolist() == [21, 0]
    with pytest.raises(StoreError, match=r"bin is damaged: .* client user 7 \(bytes"):
        store.read(np.array([2, 7]))
    assert damaged_clients(tmp_path, 1) == damaged_clients(tmp_path, 2) == [7]
    (tmp_path / "states.bin").write_bytes(bytes((tmp_path / "states.bin").stat().st_size))
    assert damaged_clients(tmp_path, 2) == [2, 7]
    with pytest.raises(StoreError, match="does not hold client states after round 3, only up to"):
        damaged_clients(tmp_path, 3)


@pytest.mark.parametrize("changes", [50, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_change_of_a_stores_files_is_read_in_silence(changes, tmp_path):
    store = DiskStore(FIRST, 10, tmp_path)
    for r in range(1, 5):
        store.write(np.array([r, r + 1, 0]), rows([r, 10 * r, 100 * r]), r)
    wanted = store.read(np.arange(10))
    rng, whole = np.random.default_rng(0), {p: p.read_bytes() for p in tmp_path.iterdir()}
    noticed = 0
    for _ in range(changes):
        path = sorted(whole)[rng.integers(3)]
        content = bytearray(whole[path])
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
        try:
            # As a checkpoint asks for it: after this round, and no other.
            assert_equal(DiskStore(FIRST, 10, tmp_path, until=4).read(np.arange(10)), wanted)
        except StoreError:
            noticed += 1
        path.write_bytes(whole[path])
    assert noticed > changes / 2


def test_reading_only_writes_nothing(tmp_path):
    with pytest.raises(StoreError, match=r"layout\.json cannot be read"):
        DiskStore(FIRST, 10, tmp_path / "none", read_only=True)
    assert not list(tmp_path.iterdir())
    DiskStore(FIRST, 10, tmp_path).write(np.array([3]), rows([30]), 1)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}
    tmp_path.chmod(0o500)
    assert_equal(DiskStore(FIRST, 10, tmp_path, read_only=True).read(np.array([3])), rows([30]))
    tmp_path.chmod(0o700)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()} == before


def test_a_store_of_an_earlier_version_goes_on_without_checksums(tmp_path):
    layout = {"clients": 10, "leaves": [[[3], "float32"], [[], "bfloat16"], [[], "int32"]]}
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    store = DiskStore(FIRST, 10, tmp_path)
    store.write(np.array([7, 2]), rows([70, 20]), 1)
    # Its records: round, clients, their positions, their slots, a checksum of the record.
    assert (tmp_path / "rounds.log").stat().st_size == 8 * (2 + 2 * 2 + 1)
    again = DiskStore(FIRST, 10, tmp_path)
    again.write(np.array([2]), rows([21]), 2)
    assert not again.checked and damaged_clients(tmp_path, 2) == []
    assert_equal(DiskStore(FIRST, 10, tmp_path).read(np.array([7, 2])), rows([70, 21]))


@pytest.mark.slow
def test_what_checksums_cost(tmp_path, monkeypatch):
    """The figures of docs/resume.md."""
    first = {"w": np.zeros(250_000, np.float32)}
    state = {"w": np.random.default_rng(0).normal(size=(20, 250_000)).astype(np.float32)}
    for checked in (False, True):
        store = DiskStore(first, 20, tmp_path / str(checked))
        store.checked = checked
        took = []
        for r in range(1, 10):
            clock = time.process_time()
            store.write(np.arange(20), state, r)
            store.read(np.arange(20))
            took.append((time.process_time() - clock) / 20 * 1000)
        print(f"a client of 1 MB written and read, {checked=}: {np.median(took):.2f} ms of CPU")
    config = pfl.runs.default_config()
    config.rounds, config.eval_every, config.checkpoint_every = 100, 50, 0
    config.client_state_in = "disk"
    config.model.hidden = (200,)
    spent, checksum = [0.0], stores._checksum

    def timed(parts):
        clock = time.thread_time()
        found = checksum(parts)
        spent[0] += time.thread_time() - clock
        return found

    monkeypatch.setattr(stores, "_checksum", timed)
    rows = pfl.runs.run(config, tmp_path / "run").rows
    seconds = sum(50 * row["seconds"] for row in rows)
    print(f"digits, states on disk: {spent[0] / seconds:.2%} of the rounds' time")
