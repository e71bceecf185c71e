"""Step sizes that change: over rounds, and for the last adaptation."""

import jax
import numpy as np
import pytest

from pflalign_jax.federated import summarise
from pflalign_jax.runs import run
from pflalign_jax.runs.build import build
from pflalign_jax.runs.config import ConfigError, default_config, resolve
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.loading import load_run
from pflalign_jax.runs.loop import RunPlan, train
from pflalign_jax.runs.signals import StoppedError
from pflalign_jax.runs.step_sizes import round_schedules


def changed(**fields):
    config = default_config("fedavg", "logistic")
    config.rounds = config.eval_every = 3
    config.dataset.num_clients, config.dataset.fraction = 4, 0.15
    config.cohort_size = 2
    config.algorithm.learning_rate = 0.5
    for name, value in fields.items():
        config[name] = value
    return config


def params_after(federation, rates=(None, None, None)):
    """Return the global model after rounds, each with a step size of its own if there is one."""
    state = federation.init(jax.random.key(0))
    for rate in rates:
        if rate is not None:
            given = {"learning_rate": np.float32(rate)}
            state = state._replace(server=state.server._replace(values=given))
        state, _ = federation.run_round(state)
    return state.server.inner.params


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("cosine", [1, 0.55, 0.1, 0.1]),
        ("linear", [1, 0.55, 0.1, 0.1]),
        ("exponential", [1, 0.1**0.5, 0.1, 0.1]),
    ],
)
def test_a_schedule_goes_from_one_to_its_last_share_and_stays_there(schedule, shares):
    config = changed(learning_rate_schedule=schedule, learning_rate_final=0.1)
    (found,) = round_schedules(config).values()
    np.testing.assert_allclose([found(done) for done in range(4)], shares, rtol=1e-6)
    (found,) = round_schedules({**config.to_dict(), "rounds": 1}).values()
    assert found(0) == 1


LINEAR = {"learning_rate_schedule": "linear", "learning_rate_final": 0.1}
RATES = (0.5, 0.275, 0.05)


def test_every_round_takes_its_own_step_size():
    found = build(changed(**LINEAR)).federation
    constant = build(resolve(changed()), tuned=["learning_rate"]).federation
    assert_close(params_after(found), params_after(constant, RATES))
    # Nothing more is counted as sent, and a constant step size is no part of the state.
    assert found.bytes_per_round == constant.bytes_per_round
    assert len(jax.tree.leaves(build(changed()).federation.shapes.server)) == 2


@pytest.mark.slow
def test_a_run_with_a_schedule_goes_on_and_is_loaded(tmp_path):
    config = changed(**LINEAR, checkpoint_every=1)
    with pytest.raises(StoppedError):
        run(config, tmp_path, say=lambda text: None, stop=lambda: 15)
    config.rounds = 5
    with pytest.raises(WorkdirError, match=r"config\.rounds was 3, is 5"):
        run(config, tmp_path, say=lambda text: None)
    config.rounds = 3
    outcome = run(config, tmp_path, say=lambda text: None)
    found = load_run(tmp_path).global_params
    assert_close(found, params_after(outcome.experiment.federation))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate_schedule": "cosin"}, "'cosin' is unknown; did you mean 'cosine'"),
        ({"learning_rate_final": 2.0}, r"learning_rate_final=2\.0 .* in \[0, 1\]"),
        (
            {"learning_rate_schedule": "exponential", "learning_rate_final": 0.0},
            r"learning_rate_final=0\.0 .* above 0",
        ),
    ],
)
def test_schedules_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        resolve(changed(**fields))


def test_an_evaluation_adapts_with_the_step_size_that_is_best_on_validation():
    config = changed(rounds=1, adapt_learning_rate=(0.001, 2.0, 0.1))
    experiment = build(config)
    outcome = train(RunPlan(experiment))
    (row,), federation = outcome.rows, experiment.federation
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    name = "accuracy/{}/personal/adapted/mean"
    tried = {
        rate: summarise(federation.evaluate(state, learning_rate=rate))
        for rate in config.adapt_learning_rate
    }
    validation = {rate: scores[name.format("validation")] for rate, scores in tried.items()}
    assert len(set(validation.values())) > 1
    best = max(validation, key=validation.get)
    assert row["adapt_learning_rate"] == best
    assert {key: row[key] for key in tried[best]} == tried[best]
    # What is received stays.
    received = "loss/test/personal/received/mean"
    assert len({scores[received] for scores in tried.values()}) == 1


@pytest.mark.slow
def test_the_step_size_of_training_is_one_to_adapt_with():
    config = changed(rounds=1, adapt_learning_rate=(0.001, 2.0))
    config.dataset.num_new_clients = 1
    experiment = build(config)
    row, federation = train(RunPlan(experiment)).rows[0], experiment.federation
    state, _ = federation.run_round(federation.init(jax.random.key(0)))
    plain, same = federation.evaluate(state), federation.evaluate(state, learning_rate=0.5)
    for score in plain:
        np.testing.assert_array_equal(plain[score].loss, same[score].loss)
    # New clients are adapted with what was chosen for the others.
    new = summarise(federation.evaluate_new(state, learning_rate=row["adapt_learning_rate"]))
    assert {key: row[key] for key in new} == new


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("pflalign", "learning_rate"),
        ("fedbabu", "fine_tune_learning_rate"),
        ("perfedavg", "alpha"),
        ("pfedme", "personal_learning_rate"),
    ],
)
def test_methods_adapt_with_a_step_size_of_their_own(name, field):
    config = default_config(name, "logistic")
    config.dataset.fraction, config.dataset.num_clients = 0.15, 4
    config.adapt_learning_rate = 0.05
    federation = build(config).federation
    assert federation.algorithm.adapts_with == field
    assert field in federation.shapes.server.values


def test_step_sizes_of_an_adaptation_that_cannot_be_are_refused():
    config = changed(adapt_learning_rate=-1.0)
    with pytest.raises(ConfigError, match=r"adapt_learning_rate=-1\.0: .*learning_rate=-1\.0"):
        build(config)
    with pytest.raises(ConfigError, match=r"adapt_learning_rate=\(\)"):
        resolve(changed(adapt_learning_rate=()))
    config = changed(adapt_learning_rate=(0.1, 0.2))
    config.dataset.validation_fraction = 0.0
    with pytest.raises(ConfigError, match=r"adapt_learning_rate=\(0\.1, 0\.2\) .*has none"):
        build(config)
    config = default_config("pfedme", "logistic")
    config.adapt_learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"adapt_learning_rate=0\.5: .*lam=15\.0"):
        build(config)
