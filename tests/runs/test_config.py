import importlib
import inspect
import math

import jax
import pytest

import pflalign_jax as pfl
from pflalign_jax.runs.build import build
from pflalign_jax.runs.config import ConfigError, default_config, resolve
from pflalign_jax.runs.factories import FACTORIES


def changed(**fields):
    config = default_config()
    for path, value in fields.items():
        section, _, key = path.rpartition("__")
        (config[section] if section else config)[key] = value
    return config


def test_defaults_come_from_the_functions_named():
    config = resolve(changed(algorithm__name="pflalign", dataset__num_clients=7))
    signature = inspect.signature(FACTORIES["algorithm"]["pflalign"])
    assert config.algorithm.beta == signature.parameters["beta"].default
    assert config.dataset.num_clients == 7
    assert "features" not in config.model and "conv" not in config.model


def test_learning_rate_is_the_experiments_own_for_the_algorithm():
    config = default_config()
    config.learning_rates.fedavg = 0.7
    config.algorithm.name = "fedavg"
    assert resolve(config).algorithm.learning_rate == 0.7
    config.algorithm.learning_rate = 0.2
    assert resolve(config).algorithm.learning_rate == 0.2


@pytest.mark.parametrize("name", FACTORIES["algorithm"])
def test_negative_learning_rates_are_refused(name):
    with pytest.raises(ConfigError, match=r"learning_rate=-0\.5"):
        build(changed(algorithm__name=name, algorithm__learning_rate=-0.5))


@pytest.mark.parametrize(
    ("name", "field", "value", "given"),
    [
        ("ditto", "personal_tx", 3.0, {"personal_tx": pfl.align_transform(3.0)}),
        ("pflalign", "before", 5.0, {"before": pfl.federated.proximal(5.0), "learning_rate": 1.0}),
    ],
)
def test_transforms_are_made_from_numbers(name, field, value, given):
    """A round of the config's algorithm is that of the one composed in Python."""
    config = changed(
        algorithm__name=name, dataset__num_clients=3, dataset__fraction=0.1, model__name="logistic"
    )

    def after_a_round(config, algorithm=None):
        experiment = build(config)
        federation = experiment.federation
        if algorithm is not None:
            federation = pfl.federate(algorithm, experiment.model, experiment.dataset)
        _, result = federation.run_round(federation.init(jax.random.key(0)), score=True)
        return result.adapted["test/personal/adapted"].loss

    plain = after_a_round(config)
    model = pfl.models.logistic(10)
    composed = after_a_round(config, getattr(pfl.algorithms, name)(model, **given))
    config.algorithm[field] = value
    assert after_a_round(config).tolist() == composed.tolist() != plain.tolist()


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "femnist", "own_data", "shakespeare"])
def test_experiments_resolve(name):
    config = importlib.import_module(f"experiments.{name}").get_config()
    if name in ("own_data", "shakespeare"):
        with pytest.raises(ConfigError, match=r"config\.dataset\.path is not set"):
            resolve(config)
        config.dataset.path = "anywhere"
    for algorithm in FACTORIES["algorithm"]:
        config.algorithm.name = algorithm
        chosen = config.learning_rates[algorithm]
        assert resolve(config).algorithm.learning_rate == chosen or chosen is None


def test_a_run_without_examples_to_score_is_refused():
    config = changed(dataset__validation_fraction=0.0, dataset__test_fraction=0.0)
    with pytest.raises(ConfigError, match="digits has neither validation nor test examples"):
        build(config)
    config.dataset.num_new_clients = 2
    with pytest.raises(ValueError, match="none of the 2 new clients has a test example"):
        build(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm__name": "fedavgg"}, r"algorithm\.name='fedavgg'.*did you mean 'fedavg'"),
        ({"dataset__name": "digit"}, r"dataset\.name='digit'.*did you mean 'digits'"),
        ({"model__name": "resnext"}, r"model\.name='resnext'.*did you mean 'resnet'"),
        ({"model__conv": "lax"}, r"model\.conv='lax' does not go with model 'mlp'.*hidden"),
        ({"rounds": 0}, r"config\.rounds=0"),
        ({"rounds": 1.5}, r"config\.rounds=1\.5.*int"),
        ({"rounds": 10**30}, r"config\.rounds=1000.*whole numbers go up to 2147483647"),
        (
            {"algorithm__learning_rate": 1e300},
            r"learning_rate=1e\+300 .* numbers go up to 3\.4e\+38",
        ),
        ({"metrics": (0,)}, r"config\.metrics=\(0,\) is not allowed; it must be a list of str"),
        ({"dataset__mean": ("a",)}, r"dataset\.mean=\('a',\) .* a list of float"),
        ({"seed": -1}, r"config\.seed=-1 is not allowed; it must be >= 0"),
        ({"seed": 2**31}, r"config\.seed=2147483648 is not allowed; whole numbers go up to"),
        ({"cohort_size": 0}, r"config\.cohort_size=0 is not allowed; it must be >= 1"),
        ({"new_client_steps": -1}, r"config\.new_client_steps=-1 .* >= 0"),
        ({"checkpoint_every": -1}, r"config\.checkpoint_every=-1 .* >= 0"),
        ({"client_state_in": "tape"}, r"config\.client_state_in='tape' is unknown"),
        ({"client_state_in": ""}, r"config\.client_state_in='' .* must not be empty"),
        ({"dataset__seed": 10**30}, r"config\.dataset\.seed=1000.* go up to"),
        ({"dataset__alpha": math.nan}, r"config\.dataset\.alpha=nan .* must be a number"),
        ({"dataset__mean": (0.5, math.nan)}, r"config\.dataset\.mean=\(0\.5, nan\)"),
        ({"dataset__alpha": "inf"}, r"alpha=inf is not allowed; .* at most 1e9"),
        ({"algorithm__learning_rate": "inf"}, r"config\.algorithm: .*learning_rate=inf"),
        ({"eval_every": 0}, r"config\.eval_every=0"),
        ({"cohort_size": "ten"}, r"cohort_size='ten'.*int or None"),
        ({"dataset__alpha": "big"}, r"dataset\.alpha='big'.*float"),
        ({"algorithm__beta": True}, r"algorithm\.beta=True.*float"),
        ({"model__hidden": "wide"}, r"model\.hidden='wide'.*a list of int, such as \(8,\)"),
        ({"model__hidden": (8, "9")}, r"model\.hidden=\(8, '9'\)"),
        ({"algorithm__learning_rate": -1.0}, r"config\.algorithm: .*learning_rate=-1\.0"),
        (
            {"algorithm__name": "ditto", "algorithm__personal_tx": -3.0},
            r"config\.algorithm: personal_tx=-3\.0: .*not allowed",
        ),
        ({"algorithm__correction": 2}, r"config\.algorithm: .*correction=2"),
        ({"algorithm__correction": "probable"}, r"config\.algorithm: .*'probable'"),
        ({"cohort_size": 21}, r"cohort_size=21 .* 20 clients"),
        ({"client_chunk": 0}, r"client_chunk=0"),
        ({"local_epochs": 0}, r"local_epochs=0"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"dataset__partition": "dirichle"}, r"'dirichle'.*did you mean 'dirichlet'"),
        ({"dataset__num_clients": 2000}, r"num_clients=2000"),
    ],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        build(changed(**fields))


def test_numbers_in_lists():
    """Whole numbers are numbers, also in a list."""
    assert resolve(changed(dataset__mean=[0, 0.5], dataset__std=(1, 2))).dataset.mean == (0.0, 0.5)


def test_every_algorithm_can_have_its_own_grid():
    config = default_config()
    assert config.compare.grids.pflalign == (0.3, 1.0, 3.0, 10.0)
    for name in FACTORIES["algorithm"]:
        config.compare.grids[name] = (0.1, 0.2)  # as --config.compare.grids.NAME does
        assert config.compare.grids[name] == (0.1, 0.2)
