"""The command that certifies a run: its table, its files, and the run opened again."""

import csv
import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments import certify as command
from experiments.certificates import asking
from experiments.certificates.asking import Asked
from experiments.report.certificates import PLACE, draw_certificates, read_certificates
from pflalign_jax.certificates import CertificateError, Certified, holdout, pac_bayes
from pflalign_jax.certificates.certificate import pooled_holdout
from pflalign_jax.cli.command import FlagError

NEW, TRAIN = (
    Asked("new", "pac_bayes", "bound", "all"),
    Asked("train", "holdout", "adapted", "bound"),
)


def answers():
    names, n = np.array(["=a", "b", "c"]), np.array([100, 50, 80])
    tested = np.array([20, 0, 10])
    test = np.array([0.1, np.nan, 0.9])
    certificate = pac_bayes([0.1, 0.2, 0.1], [1.0, 0.0, 2.0], n)
    first = Certified(names, certificate, pac_bayes(0.1, 3.0, 230), test, tested, np.full(3, 0.5))
    pooled = pooled_holdout([5, 2, 3], n)
    none = np.full(3, np.nan)
    second = Certified(names, holdout([5, 2, 3], n), pooled, test, tested, none)
    return [(NEW, first, 2.0), (TRAIN, second, 1.0)]


def test_numbers_over_clients():
    (_, found, seconds), _ = answers()
    summary = asking.summary_of(found, seconds)
    assert summary["clients"] == 3 and summary["below_test"] == 1  # client c, by its ten examples
    assert summary["test_mean"] == pytest.approx(0.5)
    assert summary["bound_mean"] == pytest.approx(found.clients.bound.mean())
    assert summary["seconds_per_100_clients"] == pytest.approx(200 / 3)


def test_table_file_and_figure(tmp_path):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(command.table("toy", 0.05, answers()))
    text = console.export_text()
    assert "new: pac_bayes, bound, on all" in text and "train: holdout, adapted, on bound" in text
    (tmp_path / "certificates").mkdir()
    assert read_certificates(tmp_path) == []
    asking.write_rows(tmp_path / PLACE, answers())
    rows = read_certificates(tmp_path)
    assert len(rows) == 6 and tuple(rows[0]) == asking.COLUMNS
    assert rows[0]["bound"] == answers()[0][1].clients.bound[0] and rows[1]["client"] == "b"
    # Rows that are kept stay as they were, NaN and quoted names, too.
    before = (tmp_path / PLACE).read_bytes()
    asking.write_rows(tmp_path / PLACE, answers()[1:], read_certificates(tmp_path)[:3])
    assert (tmp_path / PLACE).read_bytes() == before
    drawn = draw_certificates("toy", rows)
    assert [axes.get_title() for axes in drawn.axes] == ["toy: new clients", "toy: train clients"]


def test_what_is_refused_is_told_and_the_rest_certified(tmp_path, monkeypatch):
    def certify(federation, state, clients, **asked):
        if clients == "train":
            raise CertificateError("no examples")
        return answers()[0][1]

    monkeypatch.setattr(asking, "certify", certify)
    said = []
    questions = asking.questions_about(["new", "train"])
    found, refused = asking.answer(None, None, said.append, questions)
    assert {asked.clients for asked, *_ in found} == {"new"} and len(said) == len(refused) == 3
    assert said[0] == "not certified (train: pac_bayes, received, on bound): no examples"
    with pytest.raises(CertificateError, match="no examples"):
        asking.certify_run(tmp_path, None, None, "toy", said.append, clients=["train"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FlagError, match="--clients=old"):
        asking.questions_about(["old"])


@pytest.mark.slow
def test_the_command_certifies_a_run(tmp_path):
    run = [sys.executable, "-m", "experiments.run", "--config=experiments/digits.py"]
    run += [f"--workdir={tmp_path}", "--config.rounds=1", "--config.dataset.num_new_clients=2"]
    run += ["--config.dataset.bound_fraction=0.3", "--config.dataset.num_clients=4"]
    subprocess.run(run, check=True, capture_output=True)
    certify = [sys.executable, "-m", "experiments.certify", str(tmp_path), "--epochs=1"]
    done = subprocess.run([*certify, "--scales=0.5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "certificates" / "certificates.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {(row["clients"], row["kind"]) for row in rows} == {
        (clients, kind) for clients in ("new", "train") for kind in ("pac_bayes", "holdout")
    }
    assert all(0 < float(row["bound"]) <= 1 for row in rows)
    wrong = subprocess.run([*certify, "--scales=x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--scales=x" in wrong.stderr
