"""Clients in a store give what clients on devices give, with only a cohort on the devices."""

import functools

import jax
import numpy as np
import pytest
from toy import ALGORITHMS, MODEL, compilations, dataset, host, mesh

from pflalign_jax.federated import disk_store, federate, summarise
from pflalign_jax.federated.client_states import choose_place
from pflalign_jax.federated.client_store import StoreError


def make(place, devices=2, cohort_size=3, data=None, name="pflalign", state_dir=None, **options):
    algorithm = ALGORITHMS[name](local_epochs=2, batch_size=5)
    return federate(
        algorithm,
        MODEL,
        dataset() if data is None else data,
        mesh=mesh(devices),
        cohort_size=cohort_size,
        client_state_in=place,
        state_dir=state_dir,
        **options,
    )


def run(made, rounds=5):
    state = made.init(jax.random.key(0))
    for _ in range(rounds):
        state, result = made.run_round(state)
    state, result = made.run_round(state, score=True)
    scores = {**made.evaluate(state), **{f"round {k}": v for k, v in result.adapted.items()}}
    clients = [host(made.client_state(state, k)) for k in range(7)]
    return host(state.server), clients, summarise(scores), host(result.metrics)


@functools.cache
def on_devices(name, cohort_size):
    return run(make("device", name=name, cohort_size=cohort_size))


@pytest.mark.parametrize(
    ("place", "name", "devices", "cohort_size", "chunk"),
    [
        ("disk", "pflalign", 1, 3, 1),
        pytest.param("host", "pflalign", 2, 3, 2, marks=pytest.mark.slow),
        pytest.param("host", "pflalign", 2, None, 1, marks=pytest.mark.slow),
        pytest.param("host", "fedavg", 2, 3, 1, marks=pytest.mark.slow),
        pytest.param("host", "pflalign", 8, 5, 1, marks=pytest.mark.slow),
        pytest.param("disk", "local", 2, 3, 1, marks=pytest.mark.slow),
    ],
)
def test_a_store_changes_no_result(place, name, devices, cohort_size, chunk, tmp_path):
    made = make(
        place, devices, cohort_size, name=name, state_dir=tmp_path / "states", client_chunk=chunk
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        run(made),
        on_devices(name, cohort_size),
    )


def test_only_the_cohort_is_on_devices():
    sizes = np.full(400, 9)
    made = make("host", devices=2, cohort_size=4, data=dataset(sizes))
    state, _ = made.run_round(made.init(jax.random.key(0)))
    assert jax.tree.leaves(state.clients) == []
    held = sum(a.nbytes for a in jax.live_arrays())
    for _ in range(3):
        state, _ = made.run_round(state)
    assert sum(a.nbytes for a in jax.live_arrays()) < held + 50_000
    state_of_all = 400 * sum(a.nbytes for a in jax.tree.leaves(made.client_state(state, 0)))
    program = made.lower_round(state).compile().memory_analysis()
    assert program.argument_size_in_bytes < state_of_all / 4


def test_balanced_anew_every_round():
    sizes = np.random.default_rng(0).integers(1, 60, 60)
    made = make("host", devices=2, cohort_size=30, data=dataset(sizes))
    state = made.init(jax.random.key(0))
    for _ in range(4):
        state, result = made.run_round(state)
        assert int(result.work.slowest) <= 1.05 * int(result.work.all_devices) / 2


def test_data_may_be_memory_mapped(tmp_path):
    data = dataset()
    np.save(tmp_path / "x.npy", data.x)
    mapped = data._replace(x=np.load(tmp_path / "x.npy", mmap_mode="r"))
    jax.tree.map(
        np.testing.assert_array_equal, run(make("host", data=mapped)), run(make("host", data=data))
    )


def test_few_programs_serve_all_cohorts():
    sizes = np.random.default_rng(0).integers(1, 60, 100)
    made = make("host", devices=1, cohort_size=10, data=dataset(sizes))
    state = made.init(jax.random.key(0))
    shapes = set()
    for _ in range(12):
        lowered = made.lower_round(state)
        shapes.add(str(lowered.in_avals))
        state, _ = made.run_round(state)
    assert len(shapes) <= 5


def test_one_program_scores_all_clients():
    sizes = np.random.default_rng(1).integers(1, 200, 40)
    made = make("host", devices=2, cohort_size=6, data=dataset(sizes))
    state = made.init(jax.random.key(0))
    with compilations() as compiled:
        made.evaluate(state)
    assert sum("score_clients" in text for text in compiled) == 1, compiled


def test_states_in_a_store_cannot_go_back():
    made = make("host")
    start = made.init(jax.random.key(0))
    made.run_round(start)
    with pytest.raises(StoreError, match="after round 1, the state given is of round 0"):
        made.run_round(start)


def test_a_used_directory_is_refused(tmp_path):
    run(make("disk", state_dir=tmp_path))
    with pytest.raises(StoreError, match="after round 6; a new run needs an empty one"):
        make("disk", state_dir=tmp_path).init(jax.random.key(0))


def test_a_failed_write_is_told(tmp_path, monkeypatch):
    made = make("disk", state_dir=tmp_path)
    state, _ = made.run_round(made.init(jax.random.key(0)))
    made.client_state(state, 0)  # waits for the write

    def full(handle):
        raise OSError("disk full")

    monkeypatch.setattr(disk_store, "_to_disk", full)
    with pytest.raises(StoreError, match=r"cannot take the client states.*disk full"):
        for _ in range(3):
            state, _ = made.run_round(state)


def test_the_place_is_chosen_by_room(tmp_path):
    devices = mesh(1)
    assert choose_place(1e6, 1e6, devices, None) == "device"
    assert choose_place(1e6, 1e15, devices, None) == "host"
    assert choose_place(1e15, 1e6, devices, tmp_path) == "disk"
    with pytest.raises(ValueError, match=r"1000000.0 GB.*state_dir"):
        choose_place(1e15, 1e6, devices, None)
    assert make(None).client_state_in == "device"


@pytest.mark.parametrize(
    ("place", "message"),
    [("gpu", "client_state_in='gpu' is unknown"), ("disk", "needs a directory; pass state_dir")],
)
def test_bad_places_are_refused(place, message):
    with pytest.raises(ValueError, match=message):
        make(place)
