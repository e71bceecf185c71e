"""The command that certifies several methods: its runs, what it does not do again, its tables."""

import csv
import json

import pytest

from experiments.certificates import asking, base, cells, pages
from experiments.compare import trials
from experiments.report.certificates import read_certificates
from pflalign_jax.certificates import certify
from pflalign_jax.runs import default_config
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.files import WorkdirError

QUESTION = asking.Asked("new", "holdout", "adapted", "bound")
FURTHER = (
    asking.Asked("new", "pac_bayes", "received", "all"),
    asking.Asked("new", "pac_bayes", "laplace", "all"),
)
OPTIONS = {"clients": ["new"], "delta": 0.05}


def small():
    config = default_config()
    config.rounds = 2
    config.dataset.num_clients, config.dataset.num_new_clients = 3, 2
    config.dataset.fraction, config.dataset.bound_fraction = 0.3, 0.3
    config.dataset.split_by = "random"
    config.model.name = "logistic"
    config.learning_rates.fedavg, config.learning_rates.pflalign = 0.1, 1.0
    return config


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "QUESTIONS", (QUESTION,))
    config, methods = small(), ["fedavg"]
    found = cells.certify_methods(config, methods, 2, tmp_path, **OPTIONS)
    bounds = [cell[QUESTION.title]["bound_mean"] for cell in found["fedavg"]]
    assert len(bounds) == 2 and all(0 < bound < 1 for bound in bounds)

    # Certificates that are missing are asked for again, of the run that is there.
    monkeypatch.setattr(trials, "train_together", None)
    next(tmp_path.glob("trials/*/certificates/summary.json")).unlink()
    again = cells.certify_methods(config, methods, 2, tmp_path, **OPTIONS)
    assert [cell[QUESTION.title]["bound_mean"] for cell in again["fedavg"]] == bounds
    monkeypatch.setattr(cells, "certify_run", None)
    assert cells.certify_methods(config, methods, 2, tmp_path, **OPTIONS) == again
    with pytest.raises(WorkdirError, match="certificates with other options"):
        cells.certify_methods(config, methods, 2, tmp_path, clients=["new"], delta=0.1)

    # Of runs that were certified with fewer questions, by a version without the field "refused".
    monkeypatch.undo()
    asked = []

    def counted(*run, **question):
        asked.append(question["model"])
        return certify(*run, **question)

    monkeypatch.setattr(asking, "certify", counted)
    monkeypatch.setattr(asking, "QUESTIONS", (QUESTION, *FURTHER))
    paths = sorted(tmp_path.glob("trials/*/certificates/summary.json"))
    for path in paths:
        found = json.loads(path.read_text())
        assert found.pop("refused") == {}
        path.write_text(json.dumps(found))
    more = cells.certify_methods(config, methods, 2, tmp_path, **OPTIONS)
    assert asked == ["received", "laplace"] * 2
    for path, before, now in zip(paths, again["fedavg"], more["fedavg"], strict=True):
        # FedAvg keeps no second moments: that is refused, and not asked again.
        assert now.keys() == {QUESTION.title, FURTHER[0].title}
        assert now[QUESTION.title] == before[QUESTION.title]
        models = [row["model"] for row in read_certificates(path.parents[1])]
        assert models == ["adapted"] * 2 + ["received"] * 2
    assert cells.certify_methods(config, methods, 2, tmp_path, **OPTIONS) == more
    assert len(asked) == 4


def numbers(bound, test):
    names = ("bound_mean", "bound_pooled", "kl_mean", "examples", "seconds_per_100_clients")
    return {**dict.fromkeys(names, bound), "test_mean": test}


def test_tables_have_means_over_seeds(tmp_path):
    found = {
        "pflalign": [{"a": numbers(0.1, 0.05), "b": numbers(0.3, None)}, {"a": numbers(0.2, 0.07)}],
        "fedavg": [{}, {"a": numbers(0.4, 0.1)}],
    }
    text = pages.write(tmp_path, found, small(), "the command")
    assert text == (tmp_path / "certificates.md").read_text() and "    the command" in text
    spread = "0.150 ± 0.071"
    row = f"| pflalign | {spread} / {spread} (0.060 ± 0.014) | 0.300 / 0.300 (no test examples) |"
    assert "| | a | b |" in text and row in text
    assert "| fedavg (1 of 2 seeds, others diverged) | 0.400 / 0.400 (0.100) |  |" in text
    with (tmp_path / "certificates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["seed"], r["certificate"]) for r in rows] == [
        ("pflalign", "0", "a"), ("pflalign", "0", "b"), ("pflalign", "1", "a"), ("fedavg", "1", "a")
    ]  # fmt: skip
    assert rows[1]["test_mean"] == "" and float(rows[3]["bound_mean"]) == 0.4


@pytest.mark.parametrize("name", base.SETTINGS)
def test_settings_are_ready_for_certificates(name):
    config = base.get_config(name)
    if name != "fashion":
        config.dataset.path = "somewhere"
    for method in config.compare.algorithms:
        plan = cells.settings(config, method)
        assert resolve(plan).algorithm.learning_rate > 0
        assert plan.dataset.split_by == "random" and plan.dataset.bound_fraction == 0.25
        assert plan.dataset.num_new_clients > 0


def test_other_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="setting 'mnist' is unknown"):
        base.get_config("mnist")
