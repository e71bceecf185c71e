"""Messages, participation and non-finite clients from a config to the files of a run."""

import json
import logging

import numpy as np
import pytest

from pflalign_jax.runs import files
from pflalign_jax.runs.build import build, build_dataset
from pflalign_jax.runs.config import ConfigError, default_config, resolve
from pflalign_jax.runs.explain import overview
from pflalign_jax.runs.loop import RunPlan, train
from pflalign_jax.runs.message_config import FIELDS
from pflalign_jax.runs.round_checks import DivergedError

PARAMETERS = 64 * 12 + 12 + 12 * 10 + 10


def small(**fields):
    config = default_config()
    config.rounds, config.eval_every = 3, 2
    config.dataset.num_clients, config.dataset.fraction = 6, 0.3
    config.model.hidden, config.algorithm.name = (12,), "fedavg"
    config.algorithm.learning_rate = 0.1
    for path, value in fields.items():
        section, _, key = path.rpartition("__")
        (config[section] if section else config)[key] = value
    return config


def rows_of(config, path, dataset=None):
    outcome = train(RunPlan(build(config, dataset=dataset), files.create(path)))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows == outcome.rows
    return rows, json.loads((path / "summary.json").read_text())


def test_by_default_nothing_is_done(tmp_path):
    rows, summary = rows_of(small(), tmp_path)
    assert [row["bytes_up"] for row in rows] == [6 * 4 * PARAMETERS] * 2
    assert rows[0]["clients/invited"] == rows[0]["clients/answered"] == 6
    assert rows[0]["clients/nonfinite"] == 0
    assert "epsilon" not in rows[0] and summary["privacy"] == {}


def test_compressed_bytes_are_counted(tmp_path):
    config = small(messages__compression="top_k", messages__fraction=0.1, messages__clip=1.0)
    rows, _ = rows_of(config, tmp_path)
    assert rows[0]["bytes_up"] == 6 * 8 * PARAMETERS // 10
    assert rows[0]["bytes_down"] == 6 * 4 * PARAMETERS


def test_epsilon_is_in_metrics_and_summary(tmp_path):
    pytest.importorskip("dp_accounting")
    config = small(messages__private_clip=1.0, messages__noise_multiplier=2.0, cohort_size=3)
    rows, summary = rows_of(config, tmp_path)
    assert 0 < rows[0]["epsilon"] < rows[1]["epsilon"] == summary["privacy"]["epsilon"]
    assert summary["privacy"]["delta"] == 1e-5


@pytest.mark.slow  # of the server's noise: above
def test_epsilon_of_local_noise(tmp_path):
    pytest.importorskip("dp_accounting")
    config = small(messages__clip=1.0, messages__local_noise=4.0, messages__delta=1e-3)
    (_, row), summary = rows_of(config, tmp_path)
    assert row["epsilon_local"] == summary["privacy"]["epsilon_local"] > 0
    assert row["delta"] == 1e-3 and row["bytes_up"] == 6 * 4 * PARAMETERS


@pytest.mark.slow  # with noise: above
def test_without_noise_epsilon_is_null(tmp_path):
    config = small(messages__private_clip=1.0, messages__noise_multiplier=0.0)
    rows, summary = rows_of(config, tmp_path)
    assert rows[0]["epsilon"] is None and summary["privacy"]["epsilon"] is None


@pytest.mark.slow  # tests/messages/test_robust.py has it without a run
def test_an_attack_and_a_defence(tmp_path):
    attacked = small(messages__attack="sign_flip", messages__corrupted=2)
    attacked.messages.attack_factor = 3.0
    attacked.messages.robust, attacked.messages.max_norm = "norm_bound", 0.1
    rows, _ = rows_of(attacked, tmp_path / "a")
    flipped = small(messages__attack="label_flip", messages__corrupted=6)
    honest = build_dataset(resolve(flipped))
    poisoned, summary = rows_of(flipped, tmp_path / "b", honest)
    # Who is corrupted changes neither the partition nor what is scored.
    assert (
        summary["dataset"]["partition_hash"]
        == json.loads((tmp_path / "a" / "summary.json").read_text())["dataset"]["partition_hash"]
    )
    key = "loss/test/global/mean"
    assert poisoned[-1][key] > rows[-1][key]


def test_participation(tmp_path):
    config = small(cohort_size=4, rounds=6, eval_every=6, participation__dropout=0.5)
    config.participation.name, config.participation.over_selection = "availability", 1.5
    (row,), _ = rows_of(config, tmp_path)
    assert 0 < row["clients/answered"] < row["clients/invited"] <= 6
    per_client = 4 * PARAMETERS
    assert row["bytes_up"] == round(row["clients/answered"] * per_client)
    assert row["bytes_down"] == round(row["clients/invited"] * per_client)


def test_rounds_without_answers_are_said_and_harmless(tmp_path, caplog):
    config = small(participation__dropout=1.0)
    with caplog.at_level(logging.WARNING):
        rows, _ = rows_of(config, tmp_path)
    assert caplog.text.count("no client answered; the server keeps what it has") == 3
    assert rows[-1]["loss/train/mean"] is None and rows[-1]["bytes_up"] == 0
    assert rows[-1]["executed_over_useful_steps"] is None
    assert rows[-1]["accuracy/test/global/mean"] == rows[0]["accuracy/test/global/mean"]


def broken(config, clients):
    """Return the config's data with features of some clients that no training survives."""
    data = build_dataset(resolve(config))
    x, train_split = data.x.astype(np.float32), data.splits["train"]
    for k in clients:
        x[train_split.indices[train_split.offsets[k] : train_split.offsets[k + 1]]] = np.nan
    return data._replace(x=x)


@pytest.mark.parametrize("name", ["fedavg", "pflalign"])
def test_a_client_that_is_not_finite_is_left_out_and_named(tmp_path, caplog, name):
    config = small(algorithm__name=name)
    with caplog.at_level(logging.WARNING):
        rows, _ = rows_of(config, tmp_path, broken(config, [4]))
    assert "round 1: client 4 left out" in caplog.text and "round 3: client 4" in caplog.text
    assert [row["clients/nonfinite"] for row in rows] == [2, 1]
    assert all(row["accuracy/test/personal/adapted/mean"] > 0 for row in rows)
    assert np.isfinite(rows[-1]["loss/train/mean"])


def test_it_can_stop_the_run_instead(tmp_path):
    config = small(on_nonfinite="raise")
    with pytest.raises(DivergedError, match=r"round 1: .* of client 1, 4 is not finite.*'raise'"):
        rows_of(config, tmp_path, broken(config, [1, 4]))


def test_all_clients_not_finite_stops_with_advice(tmp_path):
    config = small()
    message = r"round 1: the training loss is nan for all 6 clients; .*learning_rate"
    with pytest.raises(DivergedError, match=message):
        rows_of(config, tmp_path, broken(config, range(6)))


def test_every_field_is_explained():
    assert all(f"messages.{name}: " in overview() for name in FIELDS)
    assert set(default_config().messages) == set(FIELDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compression": "topk"}, r"compression='topk' is unknown; did you mean 'top_k'"),
        ({"attack": "signflip", "corrupted": 1}, "did you mean 'sign_flip'"),
        ({"robust": "coordinate_medain"}, "did you mean 'coordinate_median'"),
        ({"compression": "top_k"}, "compression='top_k' needs config.messages.fraction"),
        ({"compression": "int8", "fraction": 0.1}, "fraction=0.1 does not go with compression="),
        ({"compression": "top_k", "fraction": 2.0}, r"config\.messages: .*fraction=2\.0"),
        ({"clip": "one"}, r"messages\.clip='one'.*float"),
        ({"clip": -1.0}, r"config\.messages: .*max_norm=-1\.0"),
        ({"error_feedback": True}, "error_feedback=True does not go with compression=None"),
        ({"attack": "sign_flip"}, "attack='sign_flip' needs config.messages.corrupted"),
        ({"attack": "sign_flip", "corrupted": 7}, "corrupted=7 .* 6 clients"),
        ({"attack": "label_flip", "corrupted": 1, "attack_factor": 2.0}, "attack_factor=2.0"),
        ({"robust": "trimmed_mean", "trim": 0.6}, "share=0.6"),
        ({"local_noise": 1.0}, "local_noise=1.0 needs config.messages.clip"),
        ({"local_noise": 1.0, "clip": 1.0, "compression": "int8"}, "messages are dense"),
        ({"private_clip": 1.0}, "set the other"),
        ({"delta": 0.1}, "delta=0.1 does not go"),
        ({"private_clip": 1.0, "noise_multiplier": 1.0, "robust": "coordinate_median"},
         "robust='coordinate_median' does not go with private_clip"),
    ],
)  # fmt: skip
def test_bad_messages_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(small(**{f"messages__{name}": value for name, value in fields.items()}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"participation__name": "uniforn"}, "participation.name='uniforn'.*mean 'uniform'"),
        ({"participation__groups": 2}, "groups=2 does not go with participation 'uniform'"),
        ({"participation__dropout": 2.0}, r"config\.participation: dropout=2\.0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite='ignore' is unknown"),
    ],
)
def test_other_bad_values_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(small(**fields))
