"""New data come as people have them, and predictions go out with the names of classes."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

import pflalign_jax as pfl
from experiments import predict
from pflalign_jax.datasets import DatasetError
from pflalign_jax.runs import loop
from pflalign_jax.tasks import classification, multilabel, regression

WARDS = ("north", "south")


def lines(count, order=("age", "dose"), labels=True):
    rng = np.random.default_rng(3)
    values = {"age": rng.integers(20, 90, count), "dose": rng.normal(size=count).round(3)}
    ill = np.where(values["age"] > 55, "ill", "=well")
    header = ",".join(["ward", *order, *(["state"] if labels else [])])
    rows = []
    for i in range(count):
        cells = [WARDS[i % 2], *(values[name][i] for name in order), *([ill[i]] if labels else [])]
        rows.append(",".join(map(str, cells)))
    return "\n".join([header, *rows]) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict")
    (path / "wards.csv").write_text(lines(80))
    config = pfl.runs.default_config("fedavg", "logistic")
    config.rounds, config.algorithm.learning_rate = 2, 0.5
    config.dataset.update(
        name="tables", path=str(path / "wards.csv"), label="state", client_column="ward",
        partition="natural", normalise="train",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_peak", lambda: 1e11)
        pfl.runs.run(config, path / "run", say=lambda text: None)
    return path


@pytest.fixture(scope="module")
def run(folder):
    return pfl.load_run(folder / "run")


def read(path, text, run):
    path.write_text(text)
    return predict.read_examples(path, run)


def test_names_are_in_the_run(run, folder):
    about = json.loads((folder / "run" / "data.json").read_text())
    assert about["class_names"] == ["=well", "ill"] == list(run.class_names)
    assert about["feature_names"] == ["age", "dose"] == list(run.feature_names)
    assert re.fullmatch(r"Run\('.*run': fedavg on wards, 2 clients, after round 2\)", repr(run))


def test_columns_may_stand_in_any_order(run, tmp_path):
    x, y = read(tmp_path / "a.csv", lines(9), run)
    other, again = read(tmp_path / "b.csv", lines(9, ("dose", "age")), run)
    np.testing.assert_array_equal(x, other)
    assert y.tolist() == again.tolist() and set(y.tolist()) == {0, 1}
    assert read(tmp_path / "c.csv", lines(9, labels=False), run)[1] is None
    outputs = run.predict(x.astype(np.float64), "north")
    np.testing.assert_array_equal(outputs, run.predict(x, "north"))
    assert predict.score(run.task, outputs, y)["accuracy"] > 0.5


def test_parquet(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    columns = {"state": ["ill", "=well"], "dose": [0.5, -1.0], "age": [70, 30], "note": ["a", "b"]}
    parquet.write_table(table(columns), tmp_path / "a.parquet")
    x, y = predict.read_examples(tmp_path / "a.parquet", run)
    assert x.tolist() == [[70, 0.5], [30, -1]] and y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,state\n3,ill\n", r"a\.csv has no column 'dose'; there are \['age', 'state'\], and"),
        ("age,dose,state\n3,4,dead\n", r"has the label 'dead', which is no class of the run; they "
         "are =well, ill$"),
        ("age,dose,state\n3,4,\n", r"no label at example 0"),
        ("age,dose\n3,old\n", r"column 'dose' has 'old' in line 2"),
        ("", "has no row below its header"),
    ],
)  # fmt: skip
def test_files_that_do_not_go_with_the_run(run, tmp_path, text, message):
    with pytest.raises((predict.DataError, DatasetError), match=message):
        read(tmp_path / "a.csv", text, run)


def test_a_run_of_an_earlier_version(run, folder, tmp_path):
    path = shutil.copytree(folder / "run", tmp_path / "run")
    about = json.loads((path / "data.json").read_text())
    for name in ("class_names", "feature_names"):
        del about[name]
    (path / "data.json").write_text(json.dumps(about))
    old = pfl.load_run(path)
    assert old.class_names is None and old.feature_names is None
    x, y = read(tmp_path / "a.csv", lines(5).replace("=well", "0").replace("ill", "1"), old)
    np.testing.assert_array_equal(old.predict(x), run.predict(x))
    assert set(y.tolist()) <= {0, 1}
    with pytest.raises(
        predict.DataError, match=r"'ill', .*its classes have no names, only the num"
    ):
        read(tmp_path / "b.csv", lines(5), old)
    with pytest.raises(predict.DataError, match=r"has 1 columns of features.*on examples \[2\]"):
        read(tmp_path / "c.csv", "age,state\n3,1\n", old)


@pytest.mark.parametrize(
    ("y", "names", "wanted"),
    [
        (np.array(["b", "a"]), ("a", "b"), [1, 0]),
        (np.array([1, 0]), ("a", "b"), [1, 0]),  # as the dataset has them
        (np.array([7, 3]), ("3", "7"), [1, 0]),  # as the file had them
        (np.array([7.0, 3.0]), ("3", "7"), [1, 0]),
        (np.array(["1", "-1"]), ("-1", "1"), [1, 0]),
        (np.array([10, 1]), ("0", "1", *"ABCDEFGHIJ"), [10, 1]),
    ],
)
def test_labels_are_names_or_positions(y, names, wanted):
    assert predict.labels_of(y, classification(), names, "f").tolist() == wanted


def test_a_number_that_is_no_class():
    with pytest.raises(predict.DataError, match="f has the label '0', which is no class of the"):
        predict.labels_of(np.array([0, 1]), classification(), ("3", "7"), "f")


def columns_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_has_names_and_probabilities(run, tmp_path):
    x = read(tmp_path / "a.csv", lines(9), run)[0]
    arrays = predict.predictions(run.task, run.predict(x), run.class_names)
    predict.write(tmp_path / "out.csv", run, arrays)
    rows = columns_of(tmp_path / "out.csv")
    assert list(rows[0]) == ["predicted", "probability_=well", "probability_ill"]
    for row, label in zip(rows, arrays["predicted"], strict=True):
        assert row["predicted"] == ("'=well", "ill")[label]  # quoted: no formula
        assert (float(row["probability_ill"]) > 0.5) == label
    predict.write(tmp_path / "out.npz", run, arrays)
    with np.load(tmp_path / "out.npz") as file:
        assert file["class_names"][file["predicted"]].tolist()[0] in ("=well", "ill")
    with pytest.raises(predict.DataError, match=r"nowhere/out\.csv cannot be written: No such"):
        predict.write(pathlib.Path(tmp_path / "nowhere" / "out.csv"), run, arrays)


def test_csv_of_other_tasks():
    outputs = np.array([[2.0, -1.0]])
    arrays = predict.predictions(multilabel(), outputs, ("tired", "hot"))
    found = predict.table_of(multilabel(), arrays, ())
    assert found["predicted_tired"].tolist() == [1] and found["predicted_hot"].tolist() == [0]
    assert list(found)[2:] == ["probability_tired", "probability_hot"]
    arrays = predict.predictions(regression(), outputs)
    assert list(predict.table_of(regression(), arrays, ("cost", "days"))) == [
        "predicted_cost", "predicted_days",
    ]  # fmt: skip
    one = predict.predictions(regression(), outputs[:, :1])
    assert list(predict.table_of(regression(), one, ())) == ["predicted"]
    binary = predict.predictions(pfl.tasks.binary(), outputs[:, :1])
    found = predict.table_of(pfl.tasks.binary(), binary, ())
    assert found["predicted"].tolist() == [1] and found["probability_1"][0] > 0.8
    assert found["probability_0"][0] + found["probability_1"][0] == pytest.approx(1)
