"""Robust rules by hand, attacks by hand, and one against the other."""

import jax
import numpy as np
import pytest
from postbox import dataset, mesh, only, post, sent

from pflalign_jax import algorithms, datasets, messages, models
from pflalign_jax.federated import federate, summarise

VECTORS = np.array([[1.0, 9], [2, -1], [3, 0], [4, 1], [100, 2]])
MEDIAN, TRIMMED = messages.coordinate_median(), messages.trimmed_mean(0.2)


def taken(rule, vectors=VECTORS, **options):
    return sent(messages.robust(post(), rule), dataset(vectors), **options)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("chunk", [1, 3])
def test_rules(devices, chunk):
    layout = {"devices": devices, "client_chunk": chunk}
    assert taken(MEDIAN, **layout).tolist() == [3, 1]
    assert taken(MEDIAN, VECTORS[:4], **layout).tolist() == [2.5, 0.5]
    assert taken(TRIMMED, **layout).tolist() == [3, 1]  # without 1 and 100, -1 and 9
    assert taken(messages.trimmed_mean(0.19), **layout) == pytest.approx([22, 2.2])
    bounded = taken(messages.norm_bound(5.0), [[3.0, 4.0], [30.0, 40.0]], **layout)
    assert bounded == pytest.approx([3, 4])


@pytest.mark.parametrize("devices", [1, 4])
def test_only_who_answers_counts(devices):
    some = {"cohort_size": 4, "participation": only(0, 3, 4), "devices": devices}
    assert taken(MEDIAN, **some).tolist() == [4, 2]
    assert taken(messages.trimmed_mean(0.34), **some).tolist() == [4, 2]
    nobody = {"cohort_size": 4, "participation": only(), "devices": devices}
    assert taken(MEDIAN, **nobody).tolist() == [0, 0]  # as before


def test_whose_message_is_not_finite_does_not_count():
    vectors = VECTORS.copy()
    vectors[4, 0] = np.inf
    assert taken(MEDIAN, vectors).tolist() == [2.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: messages.trimmed_mean(0.5), "share=0.5"),
        (lambda: messages.norm_bound(-1.0), "max_norm=-1.0"),
        (lambda: messages.corrupted_clients(dataset(VECTORS), 6), "corrupted=6 .* 5 clients"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_attacks_change_what_corrupted_clients_send():
    data, bad = dataset([[1.0], [2.0], [3.0]]), np.array([0, 2])
    assert sent(messages.sign_flip(post(), bad), data) == pytest.approx([(-1 + 2 - 3) / 3])
    assert sent(messages.sign_flip(post(), bad, 2.0), data) == pytest.approx([(-2 + 2 - 6) / 3])
    assert sent(messages.scaled_update(post(), bad), data) == pytest.approx([(10 + 2 + 30) / 3])
    shuffled = datasets.select_clients(data, np.array([2, 1, 0]))
    assert sent(messages.sign_flip(post(), bad[1:]), shuffled) == pytest.approx([0])


def test_label_flip_changes_training_labels_of_the_corrupted_only():
    data = datasets.digits(num_clients=5, fraction=0.15)
    flipped = messages.label_flip(data, np.array([1, 3]))
    for split, owned in data.splits.items():
        for k in range(5):
            own = owned.indices[owned.offsets[k] : owned.offsets[k + 1]]
            bad = split == "train" and k in (1, 3)
            np.testing.assert_array_equal(flipped.y[own], 9 - data.y[own] if bad else data.y[own])


def test_corrupted_clients_are_drawn_by_seed_and_identity():
    data = dataset(VECTORS)
    first = messages.corrupted_clients(data, 2)
    assert len(set(first.tolist())) == 2 and first.tolist() == sorted(first.tolist())
    shuffled = datasets.select_clients(data, np.array([4, 2, 0, 1, 3]))
    np.testing.assert_array_equal(messages.corrupted_clients(shuffled, 2), first)
    draws = {tuple(messages.corrupted_clients(data, 2, seed).tolist()) for seed in range(20)}
    assert len(draws) > 3


DIGITS = datasets.digits(num_clients=10, partition="iid", fraction=0.4)
MODEL = models.mlp(10, hidden=(12,))
CORRUPTED = messages.corrupted_clients(DIGITS, 3)


def accuracy(attack, rule):
    data = DIGITS
    algorithm = algorithms.fedavg(MODEL, 0.5, local_epochs=3)
    if attack == "label_flip":
        data = messages.label_flip(data, CORRUPTED)
    elif attack:
        algorithm = getattr(messages, attack)(algorithm, CORRUPTED, 20.0)
    algorithm = algorithm if rule is None else messages.robust(algorithm, rule)
    federation = federate(algorithm, MODEL, data, mesh=mesh(1))
    state = federation.init(jax.random.key(0))
    for _ in range(8):
        state, _ = federation.run_round(state)
    scores = summarise(federation.evaluate(state, adapt=False))
    return scores["accuracy/test/global/weighted"]


@pytest.mark.slow  # what the rules compute: above
def test_the_mean_fails_under_attack_and_robust_rules_hold():
    """3 of 10 clients are corrupted."""
    honest = accuracy(None, None)
    assert honest > 0.75
    flipped = accuracy("sign_flip", None)
    assert flipped < 0.4 and accuracy("scaled_update", None) < honest - 0.1
    for rule in (MEDIAN, messages.trimmed_mean(0.3)):
        assert accuracy("sign_flip", rule) > honest - 0.2 > flipped + 0.2, rule
    assert accuracy("sign_flip", messages.norm_bound(1.0)) > flipped + 0.2  # slower, but forward


def test_a_server_that_takes_the_weight_gets_it_through_every_wrapper():
    """SCAFFOLD's control moves by the share that answered; of two, median and mean are the same."""
    data, model = datasets.digits(num_clients=4, fraction=0.2), models.mlp(10, hidden=(4,))
    plain = algorithms.scaffold(model, 0.1, num_clients=4)
    private = messages.private_mean(plain, 1e6, 0.0, cohort_size=2)
    servers = []
    for algorithm in (plain, messages.robust(plain, MEDIAN), private):
        federation = federate(algorithm, model, data, mesh=mesh(1), cohort_size=2)
        state, _ = federation.run_round(federation.init(jax.random.key(0)))
        servers.append(state.server)
    assert np.abs(servers[0].control["Dense_0"]["kernel"]).max() > 1e-3
    for other in (servers[1], servers[2].own):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other, servers[0])
