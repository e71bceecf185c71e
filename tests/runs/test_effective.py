"""`config.json` holds the values that were used, and a run of them is the same run."""

import json

import pytest

from pflalign_jax import datasets, runs
from pflalign_jax.runs import files
from pflalign_jax.runs.build import build, build_dataset
from pflalign_jax.runs.config import default_config, resolve
from pflalign_jax.runs.effective import BUILT, effective_config
from pflalign_jax.runs.factories import FACTORIES
from pflalign_jax.runs.resuming import differences, prepare

pytestmark = pytest.mark.usefixtures("no_peak")


def small(algorithm="pflalign", **fields):
    config = default_config(algorithm)
    config.rounds = 2
    config.dataset.num_clients, config.dataset.fraction = 4, 0.2
    config.model.name = "logistic"
    for path, value in fields.items():
        section, _, key = path.rpartition("__")
        (config[section] if section else config)[key] = value
    return config


def as_json(config):
    return json.loads(json.dumps(config.to_dict()))


def from_json(values):
    """Return a config of what a ``config.json`` holds."""
    config = default_config(values["algorithm"]["name"], values["model"]["name"])
    for name, value in values.items():
        if isinstance(value, dict):
            config[name].update(value)
        else:
            config[name] = value
    return config


def test_what_none_stands_for():
    config = build(
        small("fedper", messages__noise_multiplier=1.0, messages__private_clip=1.0)
    ).config
    data = config.dataset
    assert (data.partition, data.alpha, data.min_examples) == ("dirichlet", 0.1, 8)
    assert (data.num_clients, data.split_by) == (4, "stratified")
    assert data.classes_per_client is None and data.feature_shift is None, "not of this run"
    assert config.cohort_size == 4 and config.client_chunk == 1
    assert config.client_state_in == "device"
    assert config.algorithm.head == ("Dense_0",)
    assert config.messages.delta == 1e-5
    assert config.messages.attack_factor is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"attack": "sign_flip", "corrupted": 1}, {"attack_factor": 1.0}),
        ({"attack": "scaled_update", "corrupted": 1}, {"attack_factor": 10.0}),
        ({"attack": "label_flip", "corrupted": 1}, {"attack_factor": None}),
        ({"compression": "int8"}, {"error_feedback": False}),
        ({"compression": "int8", "error_feedback": True}, {"error_feedback": True}),
        ({}, {"error_feedback": None, "attack_factor": None, "delta": None}),
    ],
)
def test_what_none_stands_for_in_messages(fields, expected):
    config = resolve(small(**{f"messages__{name}": value for name, value in fields.items()}))
    assert {name: config.messages[name] for name in expected} == expected


@pytest.mark.parametrize("partition", [name for name in datasets.PARTITIONS if name != "natural"])
def test_every_partition_says_its_arguments(partition):
    config = small(dataset__partition=partition, dataset__fraction=1.0, dataset__num_clients=10)
    resolved = resolve(config).dataset
    usual = datasets.PARTITIONS[partition].defaults
    assert {key: resolved[key] for key in usual} == usual
    made = build_dataset(resolve(config))
    assert {key: made.options[key] for key in usual} == usual
    config.dataset.update(usual)
    again = build_dataset(resolve(config))
    assert datasets.partition_hash(again) == datasets.partition_hash(made)


def test_owners_decide_the_partition_and_the_number_of_clients():
    config = default_config()
    config.dataset.name, config.dataset.devices = "synthetic", 7
    config.dataset.num_new_clients = 2
    dataset = build_dataset(resolve(config))
    filled = effective_config(resolve(config), dataset)
    assert filled.dataset.partition == "natural" and filled.dataset.num_clients == 5
    assert filled.dataset.min_examples == 1
    again = build_dataset(resolve(from_json({**as_json(filled)})))
    assert datasets.partition_hash(again) == datasets.partition_hash(dataset)


def test_a_partition_file_leaves_what_does_not_count(tmp_path):
    dataset = build_dataset(resolve(small()))
    datasets.save_partition(tmp_path / "partition.npz", dataset)
    config = small(dataset__partition_file=str(tmp_path / "partition.npz"))
    config.dataset.num_clients = None
    again = build_dataset(resolve(config))
    filled = effective_config(resolve(config), again)
    assert filled.dataset.partition is None and filled.dataset.alpha is None
    assert filled.cohort_size == 4


@pytest.mark.parametrize("algorithm", ["pflalign", pytest.param("fedrep", marks=pytest.mark.slow)])
def test_a_run_of_the_written_values_is_the_same_run(tmp_path, algorithm):
    def run(config, path):
        runs.run(config, path)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if "/" in k} for row in rows]
        return json.loads((path / "config.json").read_text()), kept

    asked = small(algorithm, messages__compression="int8", participation__dropout=0.3)
    written, rows = run(asked, tmp_path / "first")
    again, same_rows = run(from_json(written), tmp_path / "second")
    assert again == written and same_rows == rows
    assert written["client_state_in"] == "device" and written["dataset"]["alpha"] == 0.1


def test_earlier_versions_wrote_none_for_the_same_values():
    """Also where it says so now; another value is another run."""
    experiment = build(small("fedper", messages__compression="int8"))
    config, dataset, model, federation, _ = experiment
    now = as_json(config)
    before = as_json(resolve(small("fedper", messages__compression="int8")))
    before["messages"]["error_feedback"] = None
    before["dataset"].update(dict.fromkeys(("partition", "alpha", "min_examples", "split_by")))
    del before["algorithm"]["head"], before["local_optimizer"]

    def differ(found, wanted=config):
        return differences(found, wanted, dataset, model, federation)

    assert before != now and not differ(before) and not differ(now)
    assert differ({**before, "cohort_size": 2}) == {"cohort_size": ("2", "4")}
    changed = json.loads(json.dumps(now))
    changed["dataset"]["alpha"], changed["algorithm"]["head"] = 0.5, ["Dense_1"]
    assert differ(changed) == {
        "algorithm.head": ("['Dense_1']", "['Dense_0']"),
        "dataset.alpha": ("0.5", "0.1"),
    }
    del changed["rounds"]
    assert differ(changed)["rounds"] == ("not there", "2")
    # What only building decides is not compared where it is not known.
    planned = resolve(small("fedper", messages__compression="int8"))
    decided = {"client_chunk", "client_state_in", "algorithm.head", "task", "headline"}
    assert set(BUILT) == decided
    assert not differences(now, planned, dataset)


def test_a_run_goes_on_where_the_machine_chooses_otherwise(tmp_path):
    path = files.create(tmp_path / "run")
    experiment = build(small(client_state_in="host", client_chunk=2))
    prepare(path, experiment, print)
    said = []
    prepare(path, build(small()), said.append)
    assert "starts again from round 0" in said[0]
    assert json.loads((path / "config.json").read_text())["client_state_in"] == "device"


def test_all_of_a_config_is_there_and_of_this_run_only():
    for algorithm in FACTORIES["algorithm"]:
        written = as_json(resolve(small(algorithm)))
        assert as_json(resolve(from_json(written))) == written
