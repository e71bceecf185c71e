"""Several runs as one vmapped program: each ends as it does alone."""

import jax
import numpy as np
import pytest
from toy import ALGORITHMS, MODEL, dataset, host, mesh

from pflalign_jax.federated import federate


def made(name="pflalign", **options):
    algorithm = ALGORITHMS[name](local_epochs=2, batch_size=5)
    return federate(algorithm, MODEL, dataset(), **options)


def outcome(state, result):
    scores = {name: score.loss for name, score in result.adapted.items()}
    return host((state.server, state.clients, result.metrics, result.work.useful)), scores


@pytest.mark.parametrize(
    ("name", "cohort_size", "devices", "chunk"),
    [
        ("pflalign", 3, 2, 2),
        pytest.param("fedavg", None, 2, 1, marks=pytest.mark.slow),
        pytest.param("pflalign", None, 1, 1, marks=pytest.mark.slow),
        pytest.param("local", 3, 4, 1, marks=pytest.mark.slow),
    ],
)
def test_each_run_ends_as_alone(name, cohort_size, devices, chunk):
    federation = made(name, cohort_size=cohort_size, mesh=mesh(devices), client_chunk=chunk)
    together = [federation.init(jax.random.key(seed)) for seed in (1, 2)]
    alone = [federation.init(jax.random.key(seed)) for seed in (1, 2)]
    for done in range(3):
        found = federation.run_rounds(together, score=done == 2)
        expected = [federation.run_round(state, score=done == 2) for state in alone]
        together, alone = ([state for state, _ in each] for each in (found, expected))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[1].cohort, other[1].cohort)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
                outcome(*one),
                outcome(*other),
            )
    assert found[0][1].metrics["loss"] != found[1][1].metrics["loss"]


def test_only_states_on_devices():
    federation = made(cohort_size=3, client_state_in="host", mesh=mesh(1))
    states = [federation.init(jax.random.key(seed)) for seed in (1, 2)]
    with pytest.raises(ValueError, match="clients live in 'host'"):
        federation.run_rounds(states)
