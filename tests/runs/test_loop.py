"""A whole run in one process: its files, and that they say what happened."""

import contextlib
import csv
import json

import jax
import numpy as np
import pytest

from pflalign_jax import datasets, runs
from pflalign_jax.cli import plots
from pflalign_jax.cli.console import score_table
from pflalign_jax.errors import UserError
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.build import build
from pflalign_jax.runs.config import default_config
from pflalign_jax.runs.hardware import room_on_devices
from pflalign_jax.runs.loop import RunPlan, train
from pflalign_jax.runs.round_checks import DivergedError


def small(**fields):
    config = default_config()
    config.rounds, config.eval_every = 5, 2
    config.dataset.num_clients, config.model.hidden = 6, (16,)
    config.algorithm.learning_rate = 3.0
    for name, value in fields.items():
        config[name] = value
    return config


@pytest.fixture(scope="module", params=[None, 3], ids=["everyone", "cohort"])
def run(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    seen = []
    outcome = runs.run(
        small(cohort_size=request.param),
        path,
        on_round=lambda done, row: seen.append((done, row is not None)),
    )
    plots.write_plots(path / "plots", outcome)
    return outcome.experiment, path, outcome, seen


def test_progress_is_told_every_round(run):
    assert run[3] == [(1, False), (2, True), (3, False), (4, True), (5, True)]


def test_metrics(run):
    experiment, path, outcome, _ = run
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows == outcome.rows
    assert [row["round"] for row in rows] == [2, 4, 5]
    models = ["global", "personal/received", "personal/adapted"]
    for row in rows:
        for split in ("validation", "test"):
            for model in models:
                for statistic in ("mean", "weighted", "std", "worst_decile", "min"):
                    assert 0 <= row[f"accuracy/{split}/{model}/{statistic}"] <= 1
                assert row[f"loss/{split}/{model}/mean"] > 0
        parameters = 64 * 16 + 16 + 16 * 10 + 10
        cohort = experiment.federation.cohort_size
        assert row["bytes_up"] == row["bytes_down"] == 4 * parameters * cohort
        assert row["seconds"] > 0 and row["client_steps_per_second"] > 0
        assert row["examples_per_second"] > 2 * row["client_steps_per_second"]
        assert 0 < row["fraction_of_matmul_peak"] < 1
        assert row["executed_over_useful_steps"] == 1
        assert 1 <= row["slowest_over_mean_device"] <= 8


def test_clients(run):
    experiment, path, outcome, _ = run
    with (path / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*round_files.CLIENT_COLUMNS, "accuracy", "loss"]
    assert len(rows) == 3 * 6 * 2 * 3  # evaluated rounds, clients, splits, models
    last = [r for r in rows if (r["round"], r["split"], r["stage"]) == ("5", "test", "adapted")]
    mean = np.mean([float(r["accuracy"]) for r in last])
    assert mean == pytest.approx(outcome.summary["last"]["accuracy/test/personal/adapted/mean"])
    sizes = experiment.dataset.splits["test"].sizes
    assert [int(r["examples"]) for r in last] == sizes.tolist()


def test_summary(run):
    experiment, path, outcome, _ = run
    summary = json.loads((path / "summary.json").read_text())
    assert summary == outcome.summary
    assert summary["last"] == outcome.rows[-1]
    assert summary["algorithm"] == "pflalign" and summary["seed"] == 0
    key = "accuracy/validation/personal/adapted/mean"
    assert summary["chosen_by"] == key
    assert summary["best_validation"][key] == max(row[key] for row in outcome.rows)
    assert summary["dataset"]["partition_hash"] == datasets.partition_hash(experiment.dataset)
    with np.load(path / "partition.npz") as partition:
        assert str(partition["hash"]) == summary["dataset"]["partition_hash"]
        train_split = experiment.dataset.splits["train"]
        np.testing.assert_array_equal(partition["train_indices"], train_split.indices)
    assert json.loads((path / "config.json").read_text())["algorithm"]["beta"] == 0.9


def test_plots_are_pictures(run):
    for name in ("learning_curves", "clients", "label_counts"):
        data = (run[1] / "plots" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5000


def test_table_has_every_score(run):
    table = score_table(run[2].summary)
    names = [str(cell) for cell in table.columns[0].cells]
    assert names.count("test/personal/received") == 2
    assert any("last round (5)" in name for name in names)


def test_same_config_same_numbers(run, tmp_path):
    experiment, _, outcome, _ = run
    again = train(RunPlan(build(small(cohort_size=experiment.config.cohort_size))))
    for key, value in outcome.rows[-1].items():
        if "second" not in key and key != "fraction_of_matmul_peak":
            assert again.rows[-1][key] == value, key


def test_client_states_on_disk_change_no_score(tmp_path, run):
    config = small(cohort_size=run[0].config.cohort_size, client_state_in="disk")
    outcome = runs.run(config, tmp_path)
    assert outcome.summary["client_state_in"] == "disk"
    assert (tmp_path / "client_states" / "0" / "states.bin").exists()
    for key, value in run[2].rows[-1].items():
        if key.startswith(("accuracy", "loss")):
            assert outcome.rows[-1][key] == pytest.approx(value, abs=2e-3), key


def test_without_validation_no_round_is_chosen(tmp_path):
    config = small(rounds=2)
    config.dataset.validation_fraction = 0.0
    outcome = runs.run(config, tmp_path)
    assert outcome.summary["best_validation"] is None
    assert outcome.summary["chosen_by"] is None
    score_table(outcome.summary)


def test_divergence_stops_the_run_and_keeps_its_files(tmp_path):
    config = small(rounds=50, eval_every=1)
    config.algorithm.name, config.algorithm.learning_rate = "fedavg", 1e30
    with pytest.raises(DivergedError, match=r"round \d+: the training loss is .*1e\+30"):
        runs.run(config, tmp_path)
    assert (tmp_path / "config.json").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("held", "message"),
    [("summary.json", "holds a finished run"), ("config.json", "holds an unfinished run")],
)
def test_a_used_workdir_is_refused(tmp_path, held, message):
    (tmp_path / held).write_text("{}")
    with pytest.raises(files.WorkdirError, match=message):
        files.create(tmp_path)
    assert (tmp_path / held).read_text() == "{}"


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.WorkdirError, match=r"file/run cannot be written: Not a directory"):
        files.create(tmp_path / "file" / "run")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_a_run_is_opened_watched_and_closed(tmp_path):
    """What is to be opened is opened once the run is known, and closed however it ends."""
    told = []

    @contextlib.contextmanager
    def watch(plan):
        told.append((plan.experiment.dataset.name, plan.workdir, len(plan.start.rows)))
        try:
            yield plan._replace(on_round=lambda done, row: told.append(done))
        finally:
            told.append("closed")

    with pytest.raises(runs.StoppedError, match="stopped by SIGINT after round 1"):
        runs.run(small(rounds=2, eval_every=1), tmp_path, stop=lambda: 2, watch=watch)
    said = []
    outcome = runs.run(small(rounds=2, eval_every=1), tmp_path, say=said.append, watch=watch)
    assert told == [
        *(("digits", tmp_path, 0), 1, "closed"),
        *(("digits", tmp_path, 1), 2, "closed"),
    ]
    assert said == [f"going on in {tmp_path} after round 1 of 2"]
    assert runs.load(tmp_path).metrics == outcome.rows
    with pytest.raises(runs.WorkdirError, match="holds a finished run"):
        runs.run(small(rounds=2), tmp_path)


def test_what_the_user_can_mend_has_one_base(tmp_path):
    config = small()
    config.model.name = "mlpp"
    with pytest.raises(UserError, match=r"config\.model\.name='mlpp' is unknown"):
        runs.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="holds no run"):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    ("chunk", "said", "advice"),
    [
        (8, "RESOURCE_EXHAUSTED: 9 bytes", r"pass --config\.client_chunk=4 \(now 8\)"),
        (1, "RESOURCE_EXHAUSTED: 9 bytes", r"config\.client_chunk is 1 already"),
        (None, "INTERNAL: Failed: Out of memory", r"use a smaller model \(config\.model\)"),
    ],
)
def test_no_room_on_a_device(chunk, said, advice):
    with pytest.raises(UserError, match=f"out of memory: {advice}.*{said}"), room_on_devices(chunk):
        raise jax.errors.JaxRuntimeError(said)
