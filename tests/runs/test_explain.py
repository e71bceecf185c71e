"""`--explain` and `--help`: every field in the words of the function that takes it."""

import importlib
import re

import pytest

from pflalign_jax import datasets
from pflalign_jax.runs.config import RUN_FIELDS, default_config, resolve
from pflalign_jax.runs.explain import WIDTH, explain, overview
from pflalign_jax.runs.factories import FACTORIES, parameters
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
        for section, factories in FACTORIES.items()
        for name in factories
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
