import jax
import numpy as np

from pflalign_jax.federated.participation import sample_cohort


def cohorts(ids, size, rounds=400):
    return [
        sample_cohort(jax.random.key(0), r, np.asarray(ids, np.int32), size) for r in range(rounds)
    ]


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
