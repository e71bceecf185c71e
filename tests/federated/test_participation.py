import jax
import numpy as np
import pytest
from toy import ALGORITHMS, MODEL, dataset, host, mesh

from pflalign_jax.federated import federate
from pflalign_jax.federated.participation import availability, cyclic, uniform, weighted


def cohorts(ids, size, rounds=400):
    ids = np.asarray(ids, np.int32)
    sizes = np.ones(len(ids), int)
    return [uniform().draw(jax.random.key(0), r, ids, sizes, size).cohort for r in range(rounds)]


def test_cohorts_are_without_replacement_and_uniform():
    counts = np.zeros(10)
    for cohort in cohorts(range(10), 3):
        assert len(set(cohort.tolist())) == 3
        counts[cohort] += 1
    assert abs(counts - 120).max() < 4 * np.sqrt(400 * 0.3 * 0.7)


def test_a_clients_luck_does_not_depend_on_its_position():
    ids = np.array([7, 3, 9, 1, 4])
    for straight, back in zip(cohorts(ids, 2, 20), cohorts(ids[::-1], 2, 20), strict=True):
        assert set(ids[straight]) == set(ids[::-1][back])


def test_rounds_differ():
    assert len({tuple(cohort) for cohort in cohorts(range(10), 3, 50)}) > 20


IDS, SIZES = np.arange(10, dtype=np.int32), np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 11])
KEY = jax.random.key(3)


def turnouts(model, size, rounds=300, ids=IDS, sizes=SIZES):
    return [model.draw(KEY, r, ids, sizes, size) for r in range(rounds)]


def counts(drawn):
    return np.bincount(np.concatenate([turnout.cohort for turnout in drawn]), minlength=10)


def near(count, probability, rounds=300):
    return abs(count - rounds * probability) < 4 * np.sqrt(rounds * probability * (1 - probability))


def test_everyone_without_a_draw():
    (turnout,) = turnouts(uniform(), 10, 1)
    assert turnout.cohort.tolist() == list(range(10)) and turnout.invited == 10
    assert uniform().sure and not uniform(dropout=0.1).sure


def test_weighted_invites_by_examples():
    drawn = turnouts(weighted(), 1)
    assert near(counts(drawn)[9], 11 / 20) and near(counts(drawn)[0], 1 / 20)
    # Two of three clients of weights 1, 1, 2 without the third: 1/4 * 1/3 twice.
    some = turnouts(weighted(), 2, ids=IDS[:3], sizes=np.array([1, 1, 2]))
    assert near(sum(2 not in turnout.cohort for turnout in some), 1 / 6)


def test_groups_take_turns():
    drawn = turnouts(cyclic(3), 2, 60)
    groups = [set(np.concatenate([t.cohort for t in drawn[g::3]]).tolist()) for g in range(3)]
    assert sorted(map(len, groups)) == [3, 3, 4] and set.union(*groups) == set(range(10))
    whole = turnouts(cyclic(3), 10, 3)
    assert sorted(len(turnout.cohort) for turnout in whole) == [3, 3, 4]
    assert [turnout.invited for turnout in whole] == [len(turnout.cohort) for turnout in whole]


def test_availability_is_each_clients_own():
    assert {len(t.cohort) for t in turnouts(availability(0.0, 0.0), 10, 5)} == {0}
    assert {len(t.cohort) for t in turnouts(availability(1.0, 1.0), 10, 5)} == {10}
    half = counts(turnouts(availability(0.5, 0.5), 10))
    assert all(near(count, 0.5) for count in half)
    spread = counts(turnouts(availability(0.0, 1.0), 10)) / 300
    assert spread.min() < 0.3 < 0.7 < spread.max()


def test_clients_sleep_half_of_a_day_each_its_own():
    drawn = turnouts(availability(1.0, 1.0, period=8), 10, 16)
    awake = np.array([np.isin(IDS, turnout.cohort) for turnout in drawn]).T
    for client in awake:
        assert client.sum() == 8 and (client[:8] == client[8:]).all()
        assert (client[:8] != np.roll(client[:8], 1)).sum() == 2  # one day, one night
    assert len({tuple(client) for client in awake}) > 2


def test_dropout():
    drawn = turnouts(uniform(dropout=0.3), 4)
    assert {turnout.invited for turnout in drawn} == {4}
    answers = sum(len(turnout.cohort) for turnout in drawn)
    assert abs(answers - 1200 * 0.7) < 4 * np.sqrt(1200 * 0.21)
    plain = turnouts(uniform(), 4)
    assert all(set(a.cohort) <= set(b.cohort) for a, b in zip(drawn, plain, strict=True))
    assert all(len(turnout.cohort) == 0 for turnout in turnouts(uniform(dropout=1.0), 4, 3))


def test_over_selection_keeps_the_first_answers():
    drawn = turnouts(uniform(over_selection=1.5), 4, 50)
    wider = turnouts(uniform(), 6, 50)
    for some, invited in zip(drawn, wider, strict=True):
        assert some.invited == 6 and len(some.cohort) == 4
        assert set(some.cohort) <= set(invited.cohort)
        assert 9 not in some.cohort  # eleven times the work, and all are equally fast
    noisy = turnouts(uniform(over_selection=1.5, slowness=2.0), 4)
    assert 0 < counts(noisy)[9] < counts(turnouts(uniform(), 4))[9]
    # Whom dropout leaves of those invited are taken as they are.
    few = turnouts(uniform(over_selection=1.5, dropout=0.5), 4, 50)
    assert {len(turnout.cohort) for turnout in few} > {2, 4}


def test_limits_of_steps_are_each_clients_and_rounds():
    limit = uniform(slowness=0.5, deadline=20).step_limit
    table = np.array([[int(limit(KEY, r, i)) for i in range(12)] for r in range(12)])
    logs = np.log(table / 20)
    assert abs(np.median(logs)) < 0.3 and 0.3 < logs.std() < 0.7
    assert len(set(table[0])) > 4 and len(set(table[:, 0])) > 4
    own = np.corrcoef(logs[:6].mean(0), logs[6:].mean(0))[0, 1]
    assert own > 0.4  # a slow client is slow in other rounds, too
    assert int(uniform(deadline=7).step_limit(KEY, 0, 0)) == 7
    slowest = uniform(slowness=9.0, deadline=1).step_limit
    assert min(int(slowest(KEY, r, 0)) for r in range(9)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(dropout=1.1), "dropout=1.1"),
        (lambda: weighted(over_selection=0.5), "over_selection=0.5"),
        (lambda: uniform(slowness=-1.0), "slowness=-1.0"),
        (lambda: uniform(deadline=0), "deadline=0"),
        (lambda: cyclic(0), "groups=0"),
        (lambda: availability(0.5, 0.4), "low=0.5, high=0.4"),
        (lambda: availability(period=1), "period=1"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


UNKIND = uniform(dropout=0.4, over_selection=1.5, slowness=0.7, deadline=2)


def trained(participation, devices=1, rounds=4, **options):
    algorithm = ALGORITHMS["pflalign"](batch_size=5)
    federation = federate(
        algorithm, MODEL, dataset(), mesh=mesh(devices), participation=participation, **options
    )
    state = federation.init(jax.random.key(0))
    results = []
    for _ in range(rounds):
        state, result = federation.run_round(state)
        results.append(result)
    clients = [host(federation.client_state(state, k)) for k in range(7)]
    return (host(state.server), clients), results, federation


@pytest.mark.parametrize(
    "layout",
    [
        {"devices": 4, "client_chunk": 2},
        {"devices": 2, "client_state_in": "host"},
        {"client_chunk": 3, "client_state_in": "host"},
    ],
)
def test_results_do_not_depend_on_devices_chunk_or_place(layout):
    expected, results, _ = trained(UNKIND, cohort_size=4)
    assert len({len(result.cohort) for result in results}) > 1  # some rounds have fewer answers
    found, again, _ = trained(UNKIND, cohort_size=4, **layout)
    for one, other in zip(results, again, strict=True):
        np.testing.assert_array_equal(one.cohort, other.cohort)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected
    )


def test_stragglers_finish_fewer_steps():
    _, (result, *_), federation = trained(uniform(deadline=2), rounds=1)
    steps = -(-dataset().splits["train"].sizes // 5)
    assert int(result.work.useful) == np.minimum(steps, 2).sum() < steps.sum()
    assert federation.everyone and not trained(UNKIND, rounds=1)[2].everyone


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_round_without_answers_changes_nothing(place):
    nobody = uniform(dropout=1.0)
    (server, clients), results, _ = trained(nobody, client_state_in=place, cohort_size=3, rounds=2)
    (start, first), *_ = trained(nobody, client_state_in=place, cohort_size=3, rounds=0)
    jax.tree.map(np.testing.assert_array_equal, (server, clients), (start, first))
    for result in results:
        assert len(result.cohort) == 0 and result.invited == 3
        assert jax.tree.map(int, result.counts) == (0, 0)
        assert np.isnan(float(result.metrics["loss"]))
