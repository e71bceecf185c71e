"""A check of a device does its work in a small form, and one failure does not end it."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments.benchmark.workloads import noise
from experiments.device_check import sections
from experiments.device_check.report import Report
from experiments.device_check.sizes import FULL, SMALL
from pflalign_jax import algorithms
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
    assert report.content["sections"]["cut"]["rows"] == [{"case": 1}] and not report.failures()


def test_differences_of_results():
    a = {"w": np.array([3.0, 4.0]), "b": np.zeros(2), "n": np.int32(1)}
    assert sections.largest_difference(a, a) == 0
    assert sections.largest_difference({**a, "w": np.array([3.0, 4.5])}, a) == pytest.approx(0.1)
    # Zeros count as a thousandth of the largest.
    assert sections.largest_difference({**a, "b": np.array([5e-6, 0])}, a) == pytest.approx(1e-3)
    assert sections.largest_difference({**a, "b": np.array([np.nan, 0])}, a) == np.inf


def test_results_are_compared_with_the_cpus():
    """All sections take half a minute, which is for the slow tests."""
    (row,) = sections.results_as_on_cpu(SMALL._replace(algorithms=("ditto",)))
    assert row["ok"] and row["difference"] < 1e-5


def test_a_machine_without_pytorch_is_not_at_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = Report(None, 60, print)
    size = SMALL._replace(peers=("logistic",))
    report.run("PyTorch", lambda: sections.against_torch(size))
    assert report.content["sections"]["PyTorch"]["rows"] == [{"torch": "not installed"}]
    assert report.failures() == []


@pytest.mark.slow
def test_the_whole_check_in_the_small_form(tmp_path):
    report = Report(tmp_path / "figures.json", 600, print)
    assert sections.check(SMALL, report) == []
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["device"]["platform"] == "cpu"
    assert list(written["sections"]) == [name for name, _ in sections.all_sections(SMALL)]
    for name, section in written["sections"].items():
        assert section["rows"] or name == "PyTorch", name
    of_mlp = {row["algorithm"]: row for row in written["sections"]["rounds of mlp"]["rows"]}
    assert of_mlp["fedavg"]["over fedavg"] == 1 and 0 < of_mlp["pflalign"]["share of peak"] < 1


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
