"""`--explain` and `--help`: every field in the words of the function that takes it."""

import importlib
import re

import pytest

from pflalign_jax import datasets
from pflalign_jax.runs.config import RUN_FIELDS, ConfigError, default_config, resolve
from pflalign_jax.runs.explain import WIDTH, explain, overview
from pflalign_jax.runs.factories import FACTORIES, factories, parameters
from pflalign_jax.runs.message_config import FIELDS


def entries(text):
    """Return ``{field: (value and default, text)}``."""
    found, lines = {}, []
    for line in text.splitlines():
        if line.startswith("    "):
            lines.append(line.strip())
        else:
            name, value = line.split(" = ", 1)
            found[name] = value, (lines := [])
    return {name: (value, " ".join(lines)) for name, (value, lines) in found.items()}


@pytest.mark.parametrize("experiment", ["digits", "fashion_mnist", "femnist"])
def test_every_field_of_every_experiment_is_explained(experiment):
    config = importlib.import_module(f"experiments.{experiment}").get_config()
    for algorithm in FACTORIES["algorithm"]:
        config.algorithm.name = algorithm
        if algorithm in ("ffa_lora", "fedsa_lora", "rolora", "flora"):
            with pytest.raises(ConfigError, match=f"{algorithm} trains low-rank adapters"):
                explain(config)  # with models that have none
            continue
        found, resolved = entries(explain(config)), resolve(config)
        of_algorithm = {name for name in found if name.startswith("algorithm.")}
        assert of_algorithm == {f"algorithm.{key}" for key in resolved.algorithm}
        assert all(text and "{" not in text for _, text in found.values())


def test_values_and_defaults():
    config = importlib.import_module("experiments.digits").get_config()
    found = entries(explain(config))
    assert found["rounds"] == ("60  (default 30)", "communication rounds, >= 1")
    assert found["batch_size"][0] == "10" and found["model.hidden"][0] == "(100,)  (default (200,))"
    assert found["dataset.alpha"][0] == "0.1", "the default of this partition"
    config.dataset.alpha = 0.5
    assert entries(explain(config))["dataset.alpha"][0] == "0.5  (default 0.1)"


def test_the_text_is_that_of_the_named_algorithm():
    config = default_config()
    texts = {}
    for config.algorithm.name in ("apfl", "feddyn", "perfedavg"):
        texts[config.algorithm.name] = entries(explain(config))["algorithm.alpha"][1]
    assert len(set(texts.values())) == 3 and "fedavg" not in " ".join(texts.values())


def test_a_comparison_has_its_fields_explained():
    config = default_config()
    config.learning_rates.fedavg = 0.3
    plain, found = entries(explain(config)), entries(explain(config, comparison=True))
    assert not [name for name in plain if name.startswith(("compare.", "learning_rates"))]
    assert found["compare.grid"] == ("(0.01, 0.03, 0.1, 0.3)", "step sizes to try")
    assert found["compare.grids.pflalign"][0] == "(0.3, 1.0, 3.0, 10.0)"
    assert found["learning_rates.fedavg"][0] == "0.3" and "learning_rates.fedrep" not in found
    assert plain.items() <= found.items()


def test_overview_has_a_line_for_every_field():
    lines = overview().splitlines()
    fields = {
        f"{section}.{key}"
        for section in FACTORIES
        for name in factories(section)  # those outside the package that were named so far, too
        for key in ("name", *parameters(section, name))
    }
    fields |= set(RUN_FIELDS) | {f"messages.{key}" for key in FIELDS}
    fields |= {f"compare.{key}" for key in default_config().compare} | {"learning_rates"}
    found = [re.match(r"  ([a-z_.0-9]+): \S", line) for line in lines[4:]]
    assert sorted(match[1] for match in found) == sorted(fields)
    assert max(map(len, lines)) <= WIDTH and "--explain" in lines[1]


def test_all_partitions_are_named_where_partition_is_explained():
    text = entries(explain(default_config()))["dataset.partition"][1]
    assert all(name in text for name in datasets.PARTITIONS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, r"config\.seed=-1 is not allowed"),
        ({"task": "binary", "headline": "rmse"}, r"config\.headline='rmse': "),
        ({"task": "regression", "metrics": ("auc",)}, r"config\.metrics: "),
        ({"model.hidden": (0,)}, r"config\.model: mlp: hidden=\(0,\) .* every width must be >= 1"),
        ({"model.name": "resnet", "model.width": 0}, r"config\.model: resnet: width=0"),
        ({"model.name": "transformer", "model.heads": 3}, r"config\.model: .*heads=3 does not"),
        ({"dataset.alpha": "inf"}, r"dirichlet: alpha=inf is not allowed; .* at most 1e9"),
        ({"dataset.alpha": 0.0}, r"alpha=0\.0 is not allowed"),
        ({"dataset.partition": "lognormal", "dataset.sigma": 1e4}, r"sigma=10000\.0 .* \[0, 50\]"),
        ({"dataset.partition": "zipf", "dataset.exponent": -1.0}, r"exponent=-1\.0 .* finite"),
        ({"dataset.partition": "shards", "dataset.shards_per_client": 0}, "shards_per_client=0"),
        (
            {"dataset.seed": -1},
            r"^config\.dataset: seed=-1 is not allowed; it must be a whole",
        ),
        ({"dataset.num_clients": 0}, r"num_clients=0 is not allowed; .* >= 1"),
        ({"dataset.fraction": 1.5}, r"fraction=1\.5 is not allowed; it must be in \(0, 1\]"),
        ({"dataset.test_fraction": 1.0}, r"test_fraction=1\.0 is not allowed"),
        ({"dataset.test_count": -1}, r"test_count=-1 is not allowed"),
        ({"dataset.split_by": "label"}, r"split_by='label' is unknown"),
        ({"dataset.normalise": "best"}, r"normalise='best' is unknown"),
        ({"dataset.mean": (0.5,)}, r"mean=\(0\.5,\) and std=None: give both"),
        ({"dataset.mean": (0.5,), "dataset.std": (0.0,)}, r"std=\(0\.0,\) .* finite and > 0"),
        ({"dataset.mean": ("inf",), "dataset.std": (1.0,)}, r"mean=\(inf,\) .* finite"),
        ({"dataset.feature_shift": "noise"}, r"feature_shift='noise' needs"),
        (
            {"dataset.feature_shift": "noise", "dataset.feature_shift_strength": "inf"},
            r"feature_shift_strength=inf .* finite",
        ),
        ({"dataset.label_shift": "turn"}, r"label_shift='turn' is unknown"),
        ({"dataset.shift_groups": 2}, r"shift_groups=2 does nothing"),
        ({"algorithm.learning_rate": -1.0}, r"config\.algorithm: .*learning_rate=-1\.0"),
        ({"algorithm.learning_rate": "inf"}, r"config\.algorithm: .*learning_rate=inf"),
        ({"algorithm.correction": "sgn"}, r"config\.algorithm: .*'sgn'"),
        ({"algorithm.memory_dtype": "float16"}, r"config\.algorithm: .*float16"),
        ({"algorithm.name": "pfedme", "algorithm.beta": -1.0}, r"config\.algorithm: .*beta=-1\.0"),
        ({"participation.dropout": 2.0}, r"config\.participation: dropout=2\.0"),
        ({"messages.clip": 0.0}, r"config\.messages: .*max_norm=0\.0"),
        ({"messages.compression": "top_k", "messages.fraction": 2.0}, r"fraction=2\.0"),
        ({"messages.robust": "trimmed_mean", "messages.trim": 0.5}, r"share=0\.5"),
        (
            {"messages.private_clip": 1.0, "messages.noise_multiplier": -1.0},
            r"config\.messages: .*noise_multiplier=-1\.0",
        ),
        ({"messages.attack": "sign_flip", "messages.corrupted": -1}, r"messages\.corrupted=-1"),
        (
            {
                "messages.attack": "sign_flip",
                "messages.corrupted": 1,
                "messages.attack_factor": "-inf",
            },
            r"messages\.attack_factor=-inf .* finite",
        ),
    ],
)
def test_values_are_refused_before_there_are_data(fields, message):
    config = default_config()
    config.dataset.name, config.dataset.path = "npz", "nowhere.npz"
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        explain(config)


def test_what_only_the_data_can_tell_is_explained():
    config = default_config()
    config.cohort_size, config.messages.attack, config.messages.corrupted = 9999, "label_flip", 9999
    assert "cohort_size = 9999" in explain(config)
