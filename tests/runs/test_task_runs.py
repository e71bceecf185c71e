"""Runs of other tasks than a classification: what they are chosen by, show, and predict."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from rich.console import Console

import pflalign_jax as pfl
from experiments import predict
from experiments.compare import columns, comparison, leaderboard
from experiments.compare.entries import gain
from experiments.compare.paired import over_seeds
from experiments.partition import client_table, table_rows
from experiments.report.read import ReportError, read
from experiments.report.write import write_report
from pflalign_jax.cli import plots
from pflalign_jax.cli.console import progress, score_table
from pflalign_jax.runs import ConfigError, factories, files, loop, round_files
from pflalign_jax.runs.build import build
from pflalign_jax.runs.headline import Headline
from pflalign_jax.runs.resuming import differences
from pflalign_jax.runs.signals import StoppedError

RMSE = Headline("rmse", higher_is_better=False, percent=False)


def small(dataset, **fields):
    config = pfl.runs.default_config()
    config.rounds, config.checkpoint_every = 4, 1
    config.dataset.name, config.dataset.normalise = dataset, "train"
    config.model.name, config.algorithm.learning_rate = "logistic", 0.1
    for name, value in fields.items():
        config[name] = value
    return config


@pytest.fixture(autouse=True, scope="module")
def no_measuring():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_peak", lambda: 1e11)
        yield


def done(path, config):
    outcome = pfl.runs.run(config, path)
    plots.write_plots(path / "plots", outcome)
    return path, outcome


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    config = small("diabetes", standardise_targets=True)
    return done(tmp_path_factory.mktemp("runs") / "run", config)


@pytest.fixture(
    scope="module",
    params=["breast_cancer", pytest.param("digits_attributes", marks=pytest.mark.slow)],
)
def labels(request, tmp_path_factory):
    config = small(request.param, metrics=("calibration_error",))
    config.algorithm.name = "fedavg"
    return done(tmp_path_factory.mktemp("runs") / "run", config)


def test_the_least_error_on_validation_is_the_best_round(regression):
    path, outcome = regression
    key, summary = "rmse/validation/personal/adapted/mean", outcome.summary
    assert summary["chosen_by"] == key and summary["headline"] == RMSE._asdict()
    values = [row[key] for row in outcome.rows]
    assert len(set(values)) == 4
    assert summary["best_validation"]["round"] == 1 + int(np.argmin(values))
    assert pfl.load_run(path, "best").round == 1 + int(np.argmin(values))
    assert files.read_headline(path) == RMSE
    # What no option said is written as it was used.
    config = files.read_config(path)
    assert (config["task"], config["headline"], config["metrics"]) == ("regression", "rmse", [])


def scored(path, client, metric):
    rows = round_files.read_clients(path, "test/personal/received", 4)
    (row,) = [row for row in rows if row.client == client]
    return row.values[metric]


@pytest.mark.parametrize("client", [0, 7])
def test_a_loaded_model_predicts_in_the_units_of_y(regression, client):
    path, outcome = regression
    run, dataset = pfl.load_run(path), outcome.experiment.dataset
    mine = dataset.splits["test"].of_client(client)
    x, y = dataset.x[mine], dataset.y[mine]
    outputs = run.predict(x, client)
    assert outputs.shape == (len(x), 1) and run.task.name == "regression"
    rmse = np.sqrt(np.mean((outputs[:, 0] - y) ** 2))
    assert rmse == pytest.approx(scored(path, run.client_names[client], "rmse"), rel=1e-4)
    found = predict.score(run.task, outputs, y)
    assert found["rmse"] == pytest.approx(rmse, rel=1e-5) and list(found)[1:3] == ["mae", "r2"]
    assert list(predict.predictions(run.task, outputs)) == ["predicted"]
    with pytest.raises(predict.DataError, match=r"must be numbers for task 'regression'"):
        predict.score(run.task, outputs, np.array(["a"] * len(y)))


def test_labels_that_are_0_or_1(labels):
    path, outcome = labels
    run, dataset = pfl.load_run(path), outcome.experiment.dataset
    client = int(np.argmax(dataset.splits["test"].sizes))
    mine = dataset.splits["test"].of_client(client)
    x, y = dataset.x[mine], dataset.y[mine]
    outputs = run.predict(x, client)
    found = predict.score(run.task, outputs, y)
    for metric in ("auc", "brier", "calibration_error"):
        value = scored(path, run.client_names[client], metric)
        assert found[metric] == pytest.approx(value, rel=1e-4, nan_ok=True), metric
    arrays = predict.predictions(run.task, outputs)
    assert ((arrays["predicted"] == 1) == (outputs.reshape(arrays["predicted"].shape) > 0)).all()
    with pytest.raises(predict.DataError, match="must be 0 or 1"):
        predict.score(run.task, outputs, y + 1)
    assert json.loads((path / "data.json").read_text())["label_counts"]
    assert (path / "plots" / "label_counts.png").exists()


def printed(table):
    console = Console(file=io.StringIO(), width=150)
    console.print(table)
    return console.file.getvalue()


def test_what_is_shown_has_the_unit_of_the_headline(regression):
    path, outcome = regression
    text = printed(score_table(outcome.summary))
    key = "rmse/test/personal/adapted/mean"
    assert "pflalign on diabetes: rmse" in text and f"{outcome.rows[-1][key]:#.5g}" in text
    assert "%:" not in text and " min" not in text
    console = Console(file=io.StringIO(), width=150)
    with progress(4, 10, console, outcome.rows[:2], RMSE) as on_round:
        on_round(4, outcome.rows[-1])
    key = "rmse/validation/personal/adapted/mean"
    best = min(outcome.rows[i][key] for i in (0, 1, 3))
    assert f"(best {best:#.5g})" in console.file.getvalue()
    assert (path / "plots" / "targets.png").exists()
    assert (path / "plots" / "learning_curves.png").exists()
    rows = table_rows(outcome.experiment.dataset)
    assert list(rows[0])[-2:] == ["target_mean", "target_std"]
    assert "target_mean" in printed(client_table(outcome.experiment.dataset, rows))


def test_clients_without_a_value_are_counted():
    auc = Headline("auc")
    row = {"round": 3, "seconds": 0.1}
    row |= {f"auc/test/global/{of}": 0.75 for of in ("mean", "weighted", "std", "worst_decile")}
    row |= {"auc/test/global/min": 0.5, "auc/test/global/without": 4}
    row["auc/test/personal/adapted/without"] = 20  # nobody has a value
    summary = {"algorithm": "local", "dataset": {"name": "d"}, "headline": auc._asdict(),
               "last": row, "best_validation": None, "chosen_by": None}  # fmt: skip
    lines = printed(score_table(summary)).splitlines()
    (shared,) = [line.split() for line in lines if "test/global" in line]
    (own,) = [line.split() for line in lines if "test/personal/adapted" in line]
    assert shared[1:] == ["75.00", "75.00", "75.00", "75.00", "50.00", "4"] and own[1:] == ["20"]
    console = Console(file=io.StringIO(), width=150)
    with progress(3, 20, console, headline=auc) as on_round:
        on_round(3, row)
    assert "auc/test/personal/adapted/mean has no value" in console.file.getvalue()


def test_a_run_goes_on_to_the_same_best_round(regression, tmp_path):
    _, outcome = regression
    config = small("diabetes", standardise_targets=True)
    rounds = iter([0, 0, 15])
    with pytest.raises(StoppedError):
        pfl.runs.run(config, tmp_path / "run", stop=lambda: next(rounds))
    again = pfl.runs.run(config, tmp_path / "run")
    key = "rmse/validation/personal/adapted/mean"
    assert [row[key] for row in again.rows] == [row[key] for row in outcome.rows]
    best = pfl.load_run(tmp_path / "run", "best").round
    assert best == outcome.summary["best_validation"]["round"]


def test_a_config_from_before_there_were_tasks_is_the_same_run(tmp_path):
    experiment = build(small("digits"))
    written = experiment.config.to_dict()
    for field in ("task", "metrics", "headline", "standardise_targets"):
        del written[field]
    config, dataset, model, federation, _ = experiment
    assert not differences(written, config, dataset, model, federation)
    written["task"] = "binary"
    assert list(differences(written, config, dataset, model, federation)) == ["task"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"task": "regresion"}, r"config\.task='regresion' is unknown; did you mean 'regression'"),
        ({"metrics": ("f1",)}, r"metric 'f1' is unknown; choose from \['balanced_accuracy'"),
        ({"metrics": ("brier",)}, "task 'binary' has the metric 'brier' already"),
        ({"metrics": ("no_module:cost",)}, "there is no module 'no_module'"),
        ({"metrics": ("top_0",)}, "k=0 is not allowed"),
        ({"headline": "rmse"}, r"config\.headline='rmse': task 'binary' has no metric 'rmse'"),
        ({"standardise_targets": True}, "does nothing with task 'binary'"),
        ({"metrics": ("top_2",)}, r"metric 'top_2' does not take outputs"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(small("breast_cancer", **fields))


def test_metrics_of_labels_are_refused_for_numbers():
    # Labels 0 and 1 are numbers, too: whoever says so may predict them.
    config = small("breast_cancer", task="regression")
    assert build(config).federation.task.name == "regression"
    config.metrics = ("brier",)
    with pytest.raises(ConfigError, match=r"metric 'brier' is of labels.*task 'regression'"):
        build(config)


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Yield a folder whose modules can be named in a config, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(factories, "_OUTSIDE", {section: {} for section in factories.FACTORIES})
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


OWN_METRIC = """
import jax.numpy as jnp
import pflalign_jax as pfl


def missed(outputs, y):
    return 5000.0 * ((outputs[:, 0] <= 0) & (y == 1))


cost = pfl.tasks.mean_metric("cost", missed, higher_is_better=False)
other = 3
"""


def test_an_own_metric_by_its_name(own_modules):
    (own_modules / "own_costs.py").write_text(OWN_METRIC)
    config = small("breast_cancer", metrics=("own_costs:cost",), headline="cost", rounds=1)
    config.algorithm.name = "fedavg"
    outcome = pfl.runs.run(config, own_modules / "run")
    assert outcome.summary["chosen_by"] == "cost/validation/personal/adapted/mean"
    assert pfl.load_run(own_modules / "run").task.headline.name == "cost"
    with pytest.raises(ConfigError, match=r"has no metric 'other'; choose from \['cost'\]"):
        factories.metric("own_costs:other")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    config = small("diabetes", standardise_targets=True, rounds=2)
    config.compare.grid, config.compare.extensions = (0.001, 0.1), 0
    left_out = {}
    methods = ["local", "fedavg", "fedproto"]
    entries = comparison.compare(config, methods, 2, root, leave_out=left_out)
    leaderboard.write(root, entries, "a command", config, left_out)
    return root, entries, left_out


def test_methods_are_compared_by_the_least_error(compared):
    root, entries, left_out = compared
    assert list(left_out) == ["fedproto"] and "'regression'" in left_out["fedproto"]
    for entry in entries:
        assert entry.headline == RMSE
        assert entry.learning_rate == min(entry.searched, key=entry.searched.get)
        assert all(20 < score < 300 for score in entry.scores["personal/adapted/mean"])
    titles, rows = columns.cells(entries)
    means = [float(row[titles.index("personal/adapted")].split()[0]) for row in rows]
    assert means == sorted(means)
    local, fedavg = entries
    mean, _, _, won, lost, _ = gain(fedavg, local)
    # A gain is a smaller error.
    theirs_of, ours_of = over_seeds(local.clients), over_seeds(fedavg.clients)
    common = [(theirs_of[c], ours_of[c]) for c in ours_of]
    assert mean == pytest.approx(np.mean([theirs - ours for theirs, ours in common]))
    assert won == sum(ours < theirs - 1e-9 for theirs, ours in common)
    assert won + lost <= 10
    text = (root / "leaderboard.md").read_text()
    assert "less is better" in text and "rmse/validation/personal/adapted/mean" in text
    assert "%" not in text.replace("95 % interval", "")


def test_a_report_of_errors(compared, tmp_path):
    root, entries, _ = compared
    series = read([root], [])
    best = min(entries, key=lambda entry: np.mean(entry.scores["personal/adapted/mean"]))
    assert series[0].name == best.method and series[0].scores == pytest.approx(
        over_seeds(best.clients)
    )
    page = write_report([root], tmp_path / "report").read_text()
    assert "rmse/test/personal/adapted" in page and "less is better" in page
    assert (tmp_path / "report" / "rmse_against_bytes.png").exists()
    other = tmp_path / "other"
    shutil.copytree(next((root / "trials").glob("local-0.1-0")), other)
    data = json.loads((other / "data.json").read_text())
    data["task"]["headline"]["metric"] = "mae"
    files.write_json(other / "data.json", data)
    with pytest.raises(ReportError, match="runs are scored by mae and rmse"):
        read([root, other], [])


def test_an_algorithm_of_ones_own_must_take_the_loss(own_modules):
    (own_modules / "own_methods.py").write_text(
        "import pflalign_jax as pfl\n\n\n"
        "def plain(model, learning_rate: float = 0.1):\n"
        "    return pfl.algorithms.fedavg(model, learning_rate)\n"
    )
    config = small("breast_cancer")
    config.algorithm.name = "own_methods:plain"
    with pytest.raises(
        ConfigError, match="takes no argument loss and would train a classification"
    ):
        build(config)
