"""Labels of every task, as files have them: read, or refused with place, value and what to do."""

import numpy as np
import pytest

from pflalign_jax import datasets, tasks
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.loaders.hugging_face import load_hugging_face
from pflalign_jax.datasets.loaders.labels import targets
from pflalign_jax.datasets.loaders.npz import load_npz
from pflalign_jax.datasets.loaders.tables import load_tables

CLIENTS = np.repeat(["a", "b"], 20)
X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def table(tmp_path, columns):
    """Write columns to a csv file with a column of clients and one of features."""
    columns = {"client": ["a", "b"] * 20, "f": range(40), **columns}
    rows = [",".join(columns)]
    rows += [",".join(str(c[i]) for c in map(list, columns.values())) for i in range(40)]
    path = tmp_path / "all.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def arrays(tmp_path, y, **more):
    path = str(tmp_path / "all.npz")
    np.savez(path, **{"x": X, "y": y, "client": CLIENTS, **more})
    return path


def with_value(values, i, value):
    values = list(values)
    values[i] = value
    return values


COSTS = [round(i * 0.37, 2) for i in range(40)]
TWO = ["ill", "well"] * 20


@pytest.mark.parametrize(
    ("labels", "expected", "note"),
    [
        (TWO, [0, 1], ("labels mapped: 'ill' -> 0, 'well' -> 1.",)),
        ([1, -1] * 20, [1, 0], ("labels mapped: -1 -> 0, 1 -> 1.",)),
        (["True", "False"] * 20, [1, 0], ("labels mapped: 'False' -> 0, 'True' -> 1.",)),
        ([0, 5] * 20, [0, 1], ("labels mapped: 0 -> 0, 5 -> 1.",)),
        ([1, 0] * 20, [1, 0], ()),
    ],
)
def test_two_labels(tmp_path, labels, expected, note):
    read = [
        load_tables(table(tmp_path, {"label": labels}), task="binary"),
        load_npz(arrays(tmp_path, np.array(labels)), task="binary"),
        load_npz(arrays(tmp_path, np.array(labels)), num_classes=2, task="binary"),
    ]
    for examples in read:
        assert examples.y.tolist() == expected * 20 and examples.y.dtype == np.int32
        assert examples.num_classes == 2 and examples.task == "binary" and examples.notes == note
    data = partition_examples(read[0])
    task = tasks.infer_task(data)
    task.check(data)
    assert task.name == "binary" and data.num_classes == 2


def test_numbers_to_predict(tmp_path):
    examples = load_tables(table(tmp_path, {"label": COSTS}), task="regression")
    np.testing.assert_array_equal(examples.y, np.array(COSTS, np.float32))
    assert examples.y.dtype == np.float32 and examples.num_classes == 0
    assert examples.x.tolist() == [[i] for i in range(40)]
    whole = table(tmp_path, {"label": range(40)})
    data = datasets.tables(whole, task="regression", test_count=5)
    assert tasks.infer_task(data).name == data.task == "regression"
    assert data.y.dtype == np.float32 and data.options["split_by"] == "stratified"
    two = table(tmp_path, {"cost": COSTS, "days": range(40)})
    examples = load_tables(two, ("cost", "days"), task="regression")
    np.testing.assert_array_equal(examples.y[:, 1], np.arange(40))
    assert examples.x.shape == (40, 1) and examples.y.dtype == np.float32
    for y, shape in ((np.arange(40), (40,)), (X[:, :1], (40,)), (X, (40, 3))):
        examples = load_npz(arrays(tmp_path, y), task="regression")
        assert examples.y.shape == shape and examples.y.dtype == np.float32
        tasks.regression().check(partition_examples(examples))
    mapped = tmp_path / "mapped"
    mapped.mkdir()
    for name, array in {"x": X, "y": X[:, :2], "client": CLIENTS}.items():
        np.save(mapped / f"{name}.npy", array)
    assert load_npz(mapped, task="regression").y.shape == (40, 2)


def test_several_labels(tmp_path):
    labels = {"fever": [0, 1] * 20, "cough": ["1.0", "0"] * 20, "pain": ["True", "False"] * 20}
    examples = load_tables(table(tmp_path, labels), tuple(labels), task="multilabel")
    assert examples.y.tolist() == [[0, 1, 1], [1, 0, 0]] * 20
    assert examples.y.dtype == np.int32 and examples.num_classes == 0
    data = partition_examples(examples)
    task = tasks.infer_task(data)
    task.check(data)
    assert task.name == "multilabel" and task.num_outputs(data) == 3
    assert data.options["split_by"] == "random"
    flags = np.array([[True, False]] * 40)
    assert load_npz(arrays(tmp_path, flags), task="multilabel").y.tolist() == [[1, 0]] * 40


def test_tables_of_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def read(label, task):
        rows = {"a": [1.5, 2.5, 3.5, 4.5], "label": label}
        parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
        return load_hugging_face(str(tmp_path), task=task)

    examples = read([0.5, 1, 2, 3], "regression")
    assert examples.y.tolist() == [0.5, 1, 2, 3] and examples.task == "regression"
    assert read([[0.5, 1]] * 4, "regression").y.shape == (4, 2)
    assert read([[0, 1]] * 4, "multilabel").y.tolist() == [[0, 1]] * 4
    assert read(["x", "y"] * 2, "binary").y.tolist() == [0, 1, 0, 1]
    with pytest.raises(DatasetError, match=r"column 'label' has 'low' in example 1 \(1 of 4 rows"):
        read(["0", "low", "1", "2"], "regression")
    with pytest.raises(DatasetError, match="exactly two labels, and there are 3: 'x', 'y', 'z'"):
        read(["x", "y", "z", "x"], "binary")
    with pytest.raises(DatasetError, match=r"y\[:, 1\] has 2 in example 3 .*are 0 or 1"):
        read([[0, 1]] * 3 + [[0, 2]], "multilabel")


def test_the_classes_that_parquet_knows_by_name_count_for_classification_only(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    text = b'{"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}'
    rows = pyarrow.table({"a": [1.5, 2.5], "label": [0, 1]})
    rows = rows.replace_schema_metadata({b"huggingface": text})
    parquet.write_table(rows, tmp_path / "train.parquet")
    assert load_hugging_face(str(tmp_path), task="classification").num_classes == 3
    assert load_hugging_face(str(tmp_path), task="binary").num_classes == 2


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": COSTS}, {}, r"task='regression' \(--config.task=regression"),
        ({"label": [i * 7 for i in range(40)]}, {}, r"a quantity.*--config.task=regression"),
        ({"label": COSTS}, {"task": "ranking"}, r"task='ranking' is unknown; choose .*'binary'"),
        ({"label": COSTS}, {"task": "next_token"}, "needs x and y that are both tokens"),
        ({"label": ["x", "y"] * 19 + ["z", "x"]}, {"task": "binary"}, "two labels, .* 3: 'x', 'y'"),
        ({"label": ["x"] * 40}, {"task": "binary"}, "there are 1: 'x'.*task='classification'"),
        ({"label": with_value(TWO, 3, "NA")}, {"task": "binary"}, "no label at line 5 but 'NA'"),
        (
            {"label": with_value(COSTS, 3, "dear")},
            {"task": "regression"},
            r"all\.csv: column 'label' has 'dear' in line 5 of all\.csv \(1 of 40 rows\), which is",
        ),
        ({"label": with_value(COSTS, 3, "1e300")}, {"task": "regression"}, "'1e300' in line 5"),
        ({"label": with_value(COSTS, 3, "inf")}, {"task": "regression"}, "'inf' in line 5"),
        ({"label": with_value(COSTS, 3, "")}, {"task": "regression"}, "no label at line 5 but ''"),
        ({"label": TWO}, {"task": "multilabel"}, r"columns label=\('a', 'b'\).*task='binary'"),
        (
            {"a": COSTS, "b": COSTS},
            {"task": "multilabel", "label": ("a", "b")},
            "column 'a' has 0.37 in line 3 .*say task='regression'",
        ),
        (
            {"a": COSTS, "b": with_value(COSTS, 2, " ")},
            {"task": "regression", "label": ("a", "b")},
            "column 'b': no label at line 4",
        ),
        ({"a": TWO, "b": TWO}, {"label": ("a", "b")}, "goes with task='regression' or"),
        ({"a": TWO, "b": TWO}, {"label": ("a",), "task": "binary"}, "name one column"),
        (
            {"a": COSTS},
            {"label": ("a", "b"), "task": "regression"},
            "no column 'b'.*name the label column",
        ),
    ],
)
def test_labels_of_tables_that_do_not_fit_the_task(tmp_path, columns, options, message):
    with pytest.raises(DatasetError, match=message):
        load_tables(table(tmp_path, columns), **options)


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (X[:, 0], {}, r"task='regression' \(--config.task=regression"),
        (X, {}, r"y has shape \(40, 3\).*task='regression' or 'multilabel'"),
        (X, {"task": "binary"}, r"y has shape \(40, 3\).*task='regression' or 'multilabel'"),
        (with_value(X[:, 0], 3, np.nan), {"task": "regression"}, "no label at example 3 but nan"),
        (with_value(X[:, 0], 3, np.inf), {"task": "regression"}, "y has inf in example 3"),
        (X, {"task": "multilabel"}, r"y\[:, 0\] has .* in example 0 .* are 0 or 1"),
        (np.arange(40) % 3, {"task": "binary"}, "two labels, and there are 3: 0, 1, 2"),
        (np.arange(40) % 2, {"task": "multilabel"}, r"y has shape \(40,\).*task='binary'"),
        (np.arange(40) % 2, {"task": "binary", "num_classes": 3}, "num_classes=3 does not go with"),
        (X[:, 0], {"task": "regression", "num_classes": 3}, "num_classes=3 does nothing with"),
        (np.arange(40) % 2, {"task": "next_token"}, "needs x and y that are both tokens"),
    ],
)
def test_labels_of_arrays_that_do_not_fit_the_task(tmp_path, y, options, message):
    with pytest.raises(DatasetError, match=message):
        load_npz(arrays(tmp_path, np.array(y)), **options)


def test_examples_without_a_value_can_be_left_out(tmp_path):
    text = table(tmp_path, {"cost": with_value(COSTS, 3, "NA"), "days": with_value(COSTS, 5, "")})
    examples = load_tables(text, ("cost", "days"), missing="leave_out", task="regression")
    assert examples.y.shape == (38, 2) and "2 rows" in examples.notes[0]
    y = np.array([COSTS, with_value(COSTS, 4, np.nan)]).T
    examples = load_npz(arrays(tmp_path, y), missing="leave_out", task="regression")
    assert examples.y.shape == (39, 2) and examples.notes[0].startswith("1 examples without")


def test_sequences_are_still_read(tmp_path):
    tokens = np.arange(80).reshape(40, 2) % 7
    for task in (None, "next_token"):
        examples = load_npz(arrays(tmp_path, tokens, x=tokens), task=task)
        assert examples.num_classes == 7 and examples.task == task
        assert tasks.infer_task(partition_examples(examples)).name == "next_token"


def test_examples_in_memory():
    whole = Examples("mine", X, np.arange(40), 0, CLIENTS, task="regression")
    assert partition_examples(whole).y.dtype == np.float32
    with pytest.raises(DatasetError, match=r"num_classes=1 does not go with task='regression'"):
        partition_examples(whole._replace(num_classes=1))
    with pytest.raises(DatasetError, match=r"num_classes=0 does not go with task='binary'.* be 2"):
        partition_examples(whole._replace(task="binary"))
    with pytest.raises(DatasetError, match=r"in Examples also num_classes=0"):
        partition_examples(Examples("mine", X, X[:, 0], 1, CLIENTS))
    found = targets(np.array([b"0", b"1"]), "here", "binary")
    assert found.y.tolist() == [0, 1] and found.num_classes == 2 and not found.notes
