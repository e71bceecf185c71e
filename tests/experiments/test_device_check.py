"""A check of a device does its work in a small form, and one failure does not end it."""

import importlib
import json
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags

from experiments.benchmark.workloads import noise
from experiments.device_check import sections
from experiments.device_check.report import Report
from experiments.device_check.sizes import FULL, SMALL
from pflalign_jax import algorithms
from pflalign_jax.cli.command import FlagError
from pflalign_jax.datasets.features import input_dtype


def test_a_failing_section_is_told_and_the_others_go_on(tmp_path):
    said, file = [], tmp_path / "figures.json"
    report = Report(file, 60, said.append)

    def fails():
        yield {"case": "first", "ok": True}
        assert json.loads(file.read_text())["sections"]["one"]["rows"]  # it is written already
        raise FloatingPointError("no such kernel\nand much more")

    report.run("one", fails)
    report.run("two", lambda: [{"algorithm": "ditto", "ok": False}])
    written = json.loads(file.read_text())["sections"]
    assert written["one"]["rows"] == [{"case": "first", "ok": True}]
    assert written["one"]["error"].startswith("FloatingPointError: no such kernel (fails, line ")
    assert "error" not in written["two"] and written["two"]["seconds"] >= 0
    first, second = report.failures()
    assert first == f"one: {written['one']['error']}"
    assert second == "two: ditto is not as on the CPU"
    assert said[0] == "one: case first, ok True"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_nothing_is_begun_when_the_time_is_up():
    report = Report(None, 0, print)
    report.run("late", lambda: [{"case": 1}, {"case": 2}])
    assert report.content["sections"]["late"] == {
        "rows": [], "cut": "the time is up", "seconds": 0.0
    }  # fmt: skip
    report = Report(None, 60, lambda text: setattr(report, "_end", 0.0))
    report.run("cut", lambda: iter([{"case": 1}, {"case": 2}]))
    assert report.content["sections"]["cut"]["rows"] == [{"case": 1}]
    assert report.content["sections"]["cut"]["cut"] == "the time is up"


def test_what_was_measured_together_is_kept_together():
    report = Report(None, 60, lambda text: setattr(report, "_end", 0.0))
    report.run("precisions", lambda: [{"case": 1}, {"case": 2}])
    assert report.content["sections"]["precisions"]["rows"] == [{"case": 1}, {"case": 2}]
    assert report.failures() == []


def test_what_was_cut_is_told_for_nobody_checked_it():
    report = Report(None, 0, print)
    report.run("results", lambda: [{"case": 1}])
    (failure,) = report.failures()
    assert failure.startswith("results: cut after 0 rows, the time is up; give more --seconds")


@pytest.fixture
def command(monkeypatch):
    """The command; its flags are taken back, as other commands have some of the same names."""
    command = importlib.import_module("experiments.device_check.__main__")
    # The tests' devices and their cache are what they are.
    monkeypatch.setattr(command, "use_devices", lambda count: None)
    monkeypatch.setattr(command, "cache_programs", lambda folder: None)
    yield command
    for flag in flags.FLAGS.get_flags_for_module(command):
        delattr(flags.FLAGS, flag.name)
    del sys.modules[command.__name__]


def give(monkeypatch, command, **values):
    """Give the command flags; the others have their defaults."""
    for name in ("json", "seconds", "size", "sections"):
        default = flags.FLAGS[name].default
        flag = types.SimpleNamespace(value=values.get(name, default))
        monkeypatch.setattr(command, f"_{name.upper()}", flag)


def test_the_command_compares_and_measures(command, monkeypatch, tmp_path):
    """Two sections of the small form, through the command; the slow tests run all."""
    size = SMALL._replace(algorithms=("ditto",), contenders=("fedavg",))
    monkeypatch.setattr(command, "SMALL", size)
    file = tmp_path / "figures.json"
    chosen = ["chunks", "results as on a CPU"]
    give(monkeypatch, command, json=str(file), sections=chosen)
    command.main([])
    written = json.loads(file.read_text())
    assert written["device"]["platform"] == "cpu"
    assert list(written["sections"]) == ["results as on a CPU", "chunks"]
    (row,) = written["sections"]["results as on a CPU"]["rows"]
    assert row["algorithm"] == "ditto" and row["ok"] and row["difference"] < 1e-5
    (row,) = written["sections"]["chunks"]["rows"]
    times = {chunk: row[f"ms per step, {chunk} at a time"] for chunk in SMALL.chunks}
    assert row["best"] in (row["automatic"], min(times, key=times.get))
    assert row["automatic loses"] >= 0


def test_the_command_says_what_it_had_no_time_for(command, monkeypatch, capsys):
    give(monkeypatch, command, seconds=0.0)
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "FAILED" and said[1].startswith("results as on a CPU: cut after 0 rows")
    assert len(said) == 1 + len(sections.chosen_sections(SMALL))


def test_a_machine_without_pytorch_is_not_at_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = Report(None, 60, print)
    report.run("PyTorch", lambda: sections.against_torch(SMALL))
    assert report.content["sections"]["PyTorch"]["rows"] == [{"torch": "not installed"}]
    assert report.failures() == []


def test_unknown_sections_are_named():
    with pytest.raises(FlagError, match=r"--sections=result is unknown; choose from \['results as"):
        sections.chosen_sections(SMALL, ["chunks", "result"])


def test_differences_of_results():
    a = {"w": np.array([3.0, 4.0]), "b": np.zeros(2), "n": np.int32(1)}
    assert sections.largest_difference(a, a) == 0
    assert sections.largest_difference({**a, "w": np.array([3.0, 4.5])}, a) == pytest.approx(0.1)
    # Zeros count as a thousandth of the largest.
    assert sections.largest_difference({**a, "b": np.array([5e-6, 0])}, a) == pytest.approx(1e-3)
    assert sections.largest_difference({**a, "b": np.array([np.nan, 0])}, a) == np.inf


@pytest.mark.slow
def test_the_whole_check_in_the_small_form(tmp_path):
    report = Report(tmp_path / "figures.json", 600, print)
    assert sections.check(sections.chosen_sections(SMALL), report) == []
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["device"]["platform"] == "cpu"
    assert list(written["sections"]) == [name for name, _ in sections.all_sections(SMALL)]
    assert all(section["rows"] for section in written["sections"].values())
    assert [row["precision"] for row in written["sections"]["precisions"]["rows"]] == [
        "float32", "TF32", "bfloat16 products", "bfloat16"
    ]  # fmt: skip
    of_mlp = {row["algorithm"]: row for row in written["sections"]["rounds of mlp"]["rows"]}
    assert of_mlp["fedavg"]["over fedavg"] == 1 and 0 < of_mlp["pflalign"]["share of peak"] < 1


@pytest.mark.slow
def test_pytorch_is_timed():
    pytest.importorskip("torch", exc_type=ImportError)
    rows = list(sections.against_torch(SMALL))
    assert [row["torch"] for row in rows] == ["eager", "compiled"]
    assert all(row["torch over ours"] > 0 for row in rows)


@pytest.mark.slow
def test_results_of_all_algorithms_are_compared():
    rows = list(sections.results_as_on_cpu(FULL))
    assert [row["algorithm"] for row in rows] == list(algorithms.NAMES)
    assert all(row["ok"] for row in rows), rows


def test_what_an_accelerator_is_given_fits():
    """Shapes alone: every model takes its data."""
    made = [FULL.many, *(make("lax") for make in FULL.convolutions.values())]
    made += [work for name, work in FULL.workloads.items() if name != "lora"]  # needs weights
    for workload in made:
        dataset, model = noise(workload._replace(sizes=workload.sizes[:1])), workload.model()
        x = jax.ShapeDtypeStruct((2, *dataset.x.shape[1:]), input_dtype(dataset))
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        outputs = jax.eval_shape(model.apply, params, x)
        assert outputs.shape[-1] == dataset.num_classes
