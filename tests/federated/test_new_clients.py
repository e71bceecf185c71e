import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import ALGORITHMS, FEW, MODEL, dataset, mesh

from pflalign_jax import algorithms, federate
from pflalign_jax.datasets import select_clients


def with_new(new=(2, 5)):
    """Return the toy dataset with some of its clients held out."""
    whole = dataset()
    kept = np.array([k for k in range(whole.num_clients) if k not in new])
    return select_clients(whole, kept)._replace(new_clients=select_clients(whole, np.array(new)))


def trained(algorithm, data=None, rounds=2, **options):
    federation = federate(algorithm, MODEL, data or with_new(), **options)
    state = federation.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = federation.run_round(state)
    return federation, state


@pytest.mark.parametrize(
    "name", ["pflalign", *(pytest.param(n, marks=pytest.mark.slow) for n in FEW if n != "pflalign")]
)
def test_a_newcomer_starts_as_a_client_of_the_current_model(name):
    """An algorithm's newcomers score as clients that take part for the first time."""
    algorithm = ALGORITHMS[name](batch_size=5)
    federation, state = trained(algorithm)
    scores = federation.evaluate_new(state)
    names = {"new_clients/personal/received", "new_clients/personal/adapted"}
    assert set(scores) == names | ({"new_clients/global"} if algorithm.global_params else set())
    received = scores["new_clients/personal/received"]
    assert received.examples.tolist() == [4, 4]
    if algorithm.global_params:  # Δ = 0
        np.testing.assert_array_equal(received.loss, scores["new_clients/global"].loss)
    before = jax.tree.map(np.array, state.server)
    assert (scores["new_clients/personal/adapted"].loss != received.loss).all()
    jax.tree.map(np.testing.assert_array_equal, before, state.server)


def test_zero_steps_change_nothing_and_more_steps_change_more():
    algorithm = algorithms.fedavg(MODEL, 0.05, batch_size=2)
    losses = {}
    for steps in (0, 1, 10**6, None):
        federation, state = trained(algorithm, new_client_steps=steps)
        losses[steps] = federation.evaluate_new(state)["new_clients/personal/adapted"].loss
    received = federation.evaluate_new(state, adapt=False)
    assert set(received) == {"new_clients/global", "new_clients/personal/received"}
    np.testing.assert_array_equal(losses[0], received["new_clients/global"].loss)
    np.testing.assert_array_equal(losses[10**6], losses[None])
    assert len({tuple(loss) for loss in losses.values()}) == 3


def test_an_algorithm_may_start_newcomers_its_own_way():
    algorithm = ALGORITHMS["pflalign"]()

    def newcomer(received, data):
        _, client = algorithm.init(received.params, jax.random.key(0))
        return client._replace(direction=jax.tree.map(jnp.ones_like, received.params))

    federation, state = trained(algorithm._replace(newcomer=newcomer))
    scores = federation.evaluate_new(state, adapt=False)
    assert (scores["new_clients/personal/received"].loss != scores["new_clients/global"].loss).all()


def test_new_clients_change_nothing_for_the_others():
    algorithm = ALGORITHMS["pflalign"]()
    with_, without = (trained(algorithm, data) for data in (
        with_new(), with_new()._replace(new_clients=None)))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, with_[1].server, without[1].server)
    with pytest.raises(ValueError, match="toy has no new clients; make it with num_new_clients"):
        without[0].evaluate_new(without[1])


def test_scores_do_not_depend_on_devices_chunk_or_place():
    algorithm = ALGORITHMS["fedavg"]()
    tables = []
    for options in ({"mesh": mesh(1)},
                    {"mesh": mesh(4), "client_chunk": 2, "client_state_in": "host"}):  # fmt: skip
        federation, state = trained(algorithm, **options)
        tables.append(federation.evaluate_new(state)["new_clients/personal/adapted"].loss)
    for other in tables[1:]:
        np.testing.assert_allclose(other, tables[0], rtol=1e-4)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="new_client_steps=-1"):
        trained(ALGORITHMS["fedavg"](), new_client_steps=-1)
