"""A federation saved and restored goes on with the same bits, also on other devices."""

import jax
import numpy as np
import pytest
from toy import ALGORITHMS, MODEL, dataset, host, mesh

from pflalign_jax.federated import StoreError, federate
from pflalign_jax.federated.disk_store import DiskStore


def make(place, state_dir, devices=2, cohort_size=3, name="pflalign"):
    return federate(
        ALGORITHMS[name](local_epochs=1, batch_size=5),
        MODEL,
        dataset(),
        mesh=mesh(devices),
        cohort_size=cohort_size,
        client_state_in=place,
        state_dir=state_dir,
    )


def rounds(made, state, count):
    for _ in range(count):
        state, _ = made.run_round(state)
    return state


def all_of(made, state):
    clients = [host(made.client_state(state, k)) for k in range(7)]
    return int(state.round), host(state.server), clients


def copied(saved):
    arrays = jax.tree.map(np.array, (saved.key, saved.server, saved.clients))
    return saved._replace(key=arrays[0], server=arrays[1], clients=arrays[2])


@pytest.mark.parametrize("name", ["pflalign", pytest.param("fedavg", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("place", "cohort_size"), [("device", None), ("device", 3), ("host", 3), ("disk", 3)]
)
def test_goes_on_with_the_same_bits(place, cohort_size, name, tmp_path):
    made = make(place, tmp_path, cohort_size=cohort_size, name=name)
    state = rounds(made, made.init(jax.random.key(3)), 2)
    saved = copied(made.save(state))
    made.hold([2])
    wanted = all_of(made, rounds(made, state, 3))
    again = make(place, tmp_path, cohort_size=cohort_size, name=name)
    found = all_of(again, rounds(again, again.restore(saved), 3))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("place", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_goes_on_on_other_devices(place, tmp_path):
    made = make(place, None, devices=2)
    state = rounds(made, made.init(jax.random.key(3)), 2)
    saved, before = copied(made.save(state)), all_of(made, state)
    wanted = all_of(made, rounds(made, state, 2))
    for devices in (1, 3):
        again = make(place, None, devices=devices)
        restored = again.restore(saved)
        jax.tree.map(np.testing.assert_array_equal, all_of(again, restored), before)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            all_of(again, rounds(again, restored, 2)),
            wanted,
        )


def test_a_client_that_was_not_saved_is_named():
    made = make("device", None)
    saved = copied(made.save(made.init(jax.random.key(0))))
    saved.clients.positions[saved.clients.positions == 4] = -1
    with pytest.raises(StoreError, match="no state was saved for the client at position 4"):
        made.restore(saved)


FIRST = {"w": np.zeros(4, np.float32)}


def write(store, r, clients):
    store.write(np.array(clients), {"w": np.full((len(clients), 4), r, np.float32)}, r)


def values(store):
    return store.read(np.arange(4))["w"][:, 0].tolist()


def test_a_DiskStore_goes_back_to_rounds_that_it_holds(tmp_path):
    store = DiskStore(FIRST, 4, tmp_path)
    write(store, 1, [0, 1])
    store.hold([1])
    write(store, 2, [1, 2])
    store.hold([1, 2])
    for r in range(3, 9):
        write(store, r, [0, 1, 3])
    assert values(DiskStore(FIRST, 4, tmp_path)) == [8, 8, 2, 8]
    assert values(DiskStore(FIRST, 4, tmp_path, 2, [1])) == [1, 2, 2, 0]
    assert values(DiskStore(FIRST, 4, tmp_path, 1)) == [1, 1, 0, 0]
    assert values(DiskStore(FIRST, 4, tmp_path)) == [8, 8, 2, 8]  # opening changes nothing
    back = DiskStore(FIRST, 4, tmp_path, 2, [1])
    for r in range(3, 6):
        write(back, r, [2, 3])
    assert values(DiskStore(FIRST, 4, tmp_path)) == [1, 2, 5, 5]
    assert values(DiskStore(FIRST, 4, tmp_path, 1)) == [1, 1, 0, 0]


def test_a_DiskStore_starts_again_from_nothing(tmp_path):
    write(DiskStore(FIRST, 4, tmp_path), 1, [0, 1])
    store = DiskStore(FIRST, 4, tmp_path, 0)
    assert store.last_round() == 0 and values(store) == [0, 0, 0, 0]
    write(store, 1, [2])
    assert values(DiskStore(FIRST, 4, tmp_path)) == [0, 0, 1, 0]


def test_room_of_rounds_let_go_is_used_again(tmp_path):
    store = DiskStore(FIRST, 4, tmp_path)
    for r in range(1, 60):
        write(store, r, np.arange(r, r + 2) % 4)
        store.hold([r - 1, r] if r > 1 else [r])
        if r % 20 == 0:
            store = DiskStore(FIRST, 4, tmp_path, r, [r - 1])
    slots = (tmp_path / "states.bin").stat().st_size / 16
    assert slots <= 4 + 2 * 2 + 2  # all, a cohort twice, and what the round held before adds


def test_rounds_that_are_not_held_are_refused(tmp_path):
    store = DiskStore(FIRST, 4, tmp_path)
    write(store, 1, [0])
    with pytest.raises(StoreError, match=r"after round 1 and no longer holds \[3\]"):
        store.hold([3])
    with pytest.raises(StoreError, match="does not hold client states after round 2, only up to"):
        DiskStore(FIRST, 4, tmp_path, 2)
