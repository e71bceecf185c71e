"""Tables, sensor signals and synthetic data, on small files made here."""

import gzip
import io
import zipfile

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.labels import mapped_labels
from pflalign_jax.datasets.loaders.synthetic import make_synthetic
from pflalign_jax.datasets.loaders.tables import load_tables
from pflalign_jax.datasets.loaders.uci_har import SIGNALS, load_uci_har

ANNE = "age,label,dose\n40,ill,0.5\n50,well,1e-3\n"
BOB = 'dose,age,label\n2,60,"ill"\n3,70,ill\n4,80,well\n'


def folder(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_text(content)
    return str(tmp_path)


def test_a_file_per_client(tmp_path):
    examples = load_tables(folder(tmp_path, anne=ANNE, bob=BOB))
    np.testing.assert_allclose(examples.x[:, 0], [40, 50, 60, 70, 80])
    np.testing.assert_allclose(examples.x[:, 1], [0.5, 1e-3, 2, 3, 4])
    assert examples.y.tolist() == [0, 1, 0, 0, 1] and examples.num_classes == 2
    assert examples.owner.tolist() == ["anne"] * 2 + ["bob"] * 3
    assert examples.notes == ("labels mapped: 'ill' -> 0, 'well' -> 1.",)
    data = datasets.tables(folder(tmp_path), validation_fraction=0.0, normalise="train")
    assert data.client_names.tolist() == ["anne", "bob"]


def test_one_file_with_clients_and_splits(tmp_path):
    text = "who,a,target,part\n9,1,5,train\n9,2,6,train\n10,3,5,train\n10,4,5,test\n"
    folder(tmp_path, all=text)
    examples = load_tables(str(tmp_path / "all.csv"), "target", "who", "part")
    assert examples.owner.tolist() == [9, 9, 10, 10] and examples.y.tolist() == [0, 1, 0, 0]
    assert examples.x.ravel().tolist() == [1, 2, 3, 4]
    data = datasets.tables(str(tmp_path / "all.csv"), "target", "who", "part")
    assert data.client_names.tolist() == ["9", "10"]  # by value
    assert data.splits["test"].sizes.tolist() == [0, 1]


def test_parquet_is_the_same(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.parquet

    expected = load_tables(folder(tmp_path, anne=ANNE, bob=BOB))
    other = tmp_path / "parquet"
    other.mkdir()
    for name in ("anne", "bob"):
        table = pyarrow.csv.read_csv(tmp_path / f"{name}.csv")
        pyarrow.parquet.write_table(table, other / f"{name}.parquet")
    found = load_tables(str(other))
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.y, expected.y)
    (other / "bob.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DatasetError, match=r"bob\.parquet cannot be read as parquet"):
        load_tables(str(other))


@pytest.mark.parametrize(
    ("bob", "message"),
    [
        ("dose,label\n2,ill\n", r"bob\.csv has no column 'age'"),
        ("dose,age\n2,3\n", r"bob\.csv has no column 'label'.*name the label column"),
        (BOB.replace("age", "age,x").replace("60", "60,1"), r"bob\.csv: line 3 has 3 cells"),
        ("dose,age,label,z\n2,3,ill,4\n", r"has a column 'z' that the first file does not have"),
        ("dose,age,label\n2,,ill\n", r"bob\.csv: column 'age' has .*'' in line 2"),
        ("dose,age,label\n2,old,ill\n", r"column 'age' has .*'old'"),
        ("dose,age,label\n2,nan,ill\n", r"column 'age' has .*nan"),
        ("dose,age,age\n1,2,3\n", "names a column twice"),
        ("dose,age,label\n", "has no row"),
        ("", "has no row"),
    ],
)
def test_bad_tables_are_named(tmp_path, bob, message):
    with pytest.raises(DatasetError, match=message):
        load_tables(folder(tmp_path, anne=ANNE, bob=bob))


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no \.csv or \.parquet file; tables are"):
        load_tables(str(tmp_path))
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        load_tables(str(tmp_path / "nowhere"))
    folder(tmp_path, anne=ANNE)
    (tmp_path / "anne.parquet").touch()
    with pytest.raises(DatasetError, match="two files of client 'anne'"):
        load_tables(str(tmp_path))
    folder(tmp_path, all="client,a,label,part\n1,2,3,dev\n")
    with pytest.raises(DatasetError, match="part has the value 'dev'"):
        load_tables(str(tmp_path / "all.csv"), split_column="part")


def read(tmp_path, text, name="all.csv", **options):
    """Return what is read from one file of this text."""
    (tmp_path / name).write_text(text)
    return load_tables(str(tmp_path / name), **options)


GOOD = "client,a,label\nx,1,0\ny,2,1\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.csv", GOOD + "\n"),
        ("all.csv", GOOD + ",,\n   \n"),
        ("all.csv", GOOD.replace(",", ";")),
        ("all.CSV", GOOD.replace(",", "\t")),
        ("all.tsv", GOOD.replace(",", "\t")),
        ("all.csv", GOOD.replace(",", " , ")),
        ("all.csv", GOOD.replace("\n", "\r\n")),
        ("all.csv", GOOD.replace("y,2,1", "y,2,1.0")),
        ("all.csv", '"cli;ent";"a";"label"\nx;1;0\ny;2;1\n'.replace("cli;ent", "client")),
    ],
)
def test_files_as_people_have_them(tmp_path, name, text):
    examples = read(tmp_path, text, name)
    assert examples.x.tolist() == [[1], [2]] and examples.y.tolist() == [0, 1]
    assert examples.owner.tolist() == ["x", "y"] and examples.notes == ()
    assert examples.name == "all"


def test_compressed_and_hidden_files(tmp_path):
    for name, text in (("anne.csv.gz", ANNE), ("bob.CSV.GZ", BOB)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    (tmp_path / "._anne.csv").write_bytes(b"\0\5\x16\7")  # macOS writes these
    examples = load_tables(str(tmp_path))
    assert examples.owner.tolist() == ["anne"] * 2 + ["bob"] * 3
    (tmp_path / "anne.csv.gz").write_bytes(gzip.compress(ANNE.encode())[:-9])
    with pytest.raises(DatasetError, match=r"anne\.csv\.gz cannot be read as csv"):
        load_tables(str(tmp_path))


def test_columns_of_row_numbers_are_no_features(tmp_path):
    plain = read(tmp_path, GOOD)
    for name in ("", "Unnamed: 0", "__index_level_0__"):
        lines = [f"{i},{line}" for i, line in enumerate(GOOD.split())]
        lines[0] = f"{name},client,a,label"
        examples = read(tmp_path, "\n".join(lines))
        np.testing.assert_array_equal(examples.x, plain.x)
        assert examples.notes[0].startswith(f"columns ['{name}'] are left out")


def test_equal_numbers_are_one_class_and_one_client(tmp_path):
    (tmp_path / "a.csv").write_text("x,label\n1,0\n2,1\n")
    (tmp_path / "b.csv").write_text("x,label\n1,0.0\n2,1.0\n")
    examples = load_tables(str(tmp_path))
    assert examples.y.tolist() == [0, 1, 0, 1] and examples.notes == ()
    examples = read(tmp_path, "client,a,label\n1,1,yes\n1.0,2, yes\n2,3,no\n")
    assert examples.owner.tolist() == [1, 1, 2] and examples.y.tolist() == [1, 1, 0]


@pytest.mark.parametrize("word", ["", "NA", " nan", "null", "NULL"])
@pytest.mark.parametrize("column", ["client", "label"])
def test_missing_clients_and_labels(tmp_path, word, column):
    cells = {"client": "y", "label": "1", column: word}
    text = f"client,a,label\nx,1,0\n{cells['client']},2,{cells['label']}\nz,3,1\n"
    with pytest.raises(DatasetError, match=f"column '{column}': no {column} at line 3.*leave_out"):
        read(tmp_path, text)
    examples = read(tmp_path, text, missing="leave_out")
    assert examples.owner.tolist() == ["x", "z"] and examples.x.ravel().tolist() == [1, 3]
    assert examples.notes == ("1 rows without a value in label or client are left out.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('client,a,label\n"x\ny",1,0\n\nz,b,1\n', "'b' in line 5 "),  # as an editor counts
        ("client;a;label\nx;0,5;1\n", "'0,5' in line 2 .*decimals with a point"),
        ("client,a,label\nx,1,0.37\ny,1,0.5\n", r"line 2 of all\.csv is 0\.37, .*regression"),
        ("client,a,label\nx,1,0\ny,1,-1\ny,1,2", r"label -1 at line 3 of all\.csv is negative"),
        (
            "client,a,label\n" + "".join(f"x,1,{50 + 3 * i}\n" for i in range(40)),
            "40 different numbers from 50 to 167 in 40 examples: .*regression",
        ),
        ("client,a,label,part\nx,1,0,train\n", "column 'part' has 'train'"),
    ],
)
def test_places_in_files_are_those_of_an_editor(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("values", [[[1, 2], [3, 4]], [[1], [2, 3]], [{"u": 1}, {"u": 2}]])
def test_lists_in_parquet_are_named(tmp_path, values):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"client": ["p", "q"], "a": values, "label": [0, 1]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"t\.parquet: column 'a' holds (list|struct)"):
        load_tables(str(tmp_path / "t.parquet"))


def test_a_client_column_and_another_partition(tmp_path):
    folder(tmp_path, all=GOOD)
    path = str(tmp_path / "all.csv")
    with pytest.raises(DatasetError, match=r"client_column='client' does nothing with .*'iid'"):
        datasets.tables(path, client_column="client", partition="iid", num_clients=2)
    data = datasets.tables(path, partition="iid", num_clients=2)
    assert data.notes[0].startswith("the 2 clients of the data are not used")


def test_labels():
    assert mapped_labels(np.array([2, 0, 1]), "f")[0].tolist() == [2, 0, 1]
    found = mapped_labels(np.array([1, 6, 3]), "f")
    assert found.y.tolist() == [0, 2, 1] and found.num_classes == 3
    assert found.notes == ("labels mapped: 1 -> 0, 3 -> 1, 6 -> 2.",)
    assert mapped_labels(np.arange(1, 14), "f").notes[0].endswith("10 -> 9 and 3 more.")
    with pytest.raises(DatasetError, match="f: label -1 at example 1 is negative"):
        mapped_labels(np.array([0, -1]), "f")
    with pytest.raises(DatasetError, match=r"label at example 0 is 0\.5.*regression"):
        mapped_labels(np.array([0.5]), "f")


def har_files(sizes=(3, 2)):
    """Yield names and contents as in the folder ``UCI HAR Dataset``."""
    rng = np.random.default_rng(0)
    for part, count, subjects in (("train", sizes[0], (1, 1, 3)), ("test", sizes[1], (2, 30))):
        for signal in SIGNALS:
            buffer = io.StringIO()
            np.savetxt(buffer, rng.normal(size=(count, 128)), fmt="%16.7e")
            yield f"{part}/Inertial Signals/{signal}_{part}.txt", buffer.getvalue()
        yield f"{part}/y_{part}.txt", "".join(f"{1 + i % 6}\n" for i in range(count))
        yield f"{part}/subject_{part}.txt", "".join(f"{s}\n" for s in subjects)


@pytest.fixture
def har(tmp_path):
    for name, content in har_files():
        path = tmp_path / "UCI HAR Dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_uci_har(har):
    expected = load_uci_har(str(har))
    assert expected.x.shape == (5, 128, 9) and expected.x.dtype == np.float32
    assert expected.y.tolist() == [0, 1, 2, 0, 1] and expected.owner.tolist() == [1, 1, 3, 2, 30]
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as files:
        for name, content in har_files():
            files.writestr(f"UCI HAR Dataset/{name}", content)
    (har / "plain.zip").write_bytes(inner.getvalue())
    with zipfile.ZipFile(har / "nested.zip", "w") as files:
        files.writestr("UCI HAR Dataset.zip", inner.getvalue())
    for name in ("plain.zip", "nested.zip"):
        np.testing.assert_array_equal(load_uci_har(str(har / name)).x, expected.x)
    data = datasets.uci_har(str(har), validation_fraction=0.0, test_fraction=0.0)
    assert data.client_names.tolist() == ["1", "2", "3", "30"]
    (har / "plain.zip").write_bytes(inner.getvalue()[:500])
    with pytest.raises(DatasetError, match=r"plain\.zip cannot be read as zip.*archive\.ics"):
        load_uci_har(str(har / "plain.zip"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/y_train.txt", "1\n2\n", "2 labels and 3 subjects; they must be equally long"),
        ("train/y_train.txt", "1\n2\n7\n", r"labels .*'7'\]; they are 1\.\.6"),
        ("train/y_train.txt", "1\nx\n3\n", r"y_train\.txt is not a table of numbers"),
        ("test/Inertial Signals/body_acc_x_test.txt", "1 2 3\n4 5 6\n", "128 columns"),
        ("test/subject_test.txt", None, r"subject_test\.txt cannot be read"),
    ],
)
def test_bad_har_files_are_named(har, name, content, message):
    path = har / "UCI HAR Dataset" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_uci_har(str(har))


def test_missing_har_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"neither a zip file nor a folder.*archive\.ics"):
        load_uci_har(str(tmp_path))


def test_synthetic():
    examples = make_synthetic(devices=12, seed=3)
    sizes = np.bincount(examples.owner)
    assert len(sizes) == 12 and sizes.min() >= 50 and examples.x.shape[1] == 60
    fewer = make_synthetic(devices=5, seed=3)
    np.testing.assert_array_equal(examples.x[: len(fewer.x)], fewer.x)  # clients draw alone
    # α = β = 0: models still differ, N(0, 1); the IID variant has one model for all.
    same = make_synthetic(0.0, 0.0, 4, iid=True)
    spread = [same.x[same.owner == k].std(0) for k in range(4)]
    np.testing.assert_allclose(np.mean(spread, 0)[:3], np.arange(1, 4) ** -0.6, rtol=0.3)
    centres = [examples.x[examples.owner == k].mean() for k in range(12)]
    assert np.std(centres) > 0.5  # β moves a client's features as a whole
    with pytest.raises(DatasetError, match=r"beta=-1\.0"):
        make_synthetic(beta=-1.0)
    data = datasets.synthetic(devices=6, seed=1)
    assert data.num_clients == 6 and data.num_classes == 10


def test_other_labels_and_texts_are_ignored_by_name(tmp_path):
    lines = ["client,age,died,note,cost", *(f"c{i % 2},{i},no,seen,{i}.5" for i in range(8))]
    (tmp_path / "stays.csv").write_text("\n".join(lines))
    data = datasets.tables(
        str(tmp_path / "stays.csv"), label="cost", task="regression", ignore=("died", "note")
    )
    assert data.x.shape == (8, 1) and data.x[3, 0] == 3
    with pytest.raises(DatasetError, match="has no column 'notes', only"):
        datasets.tables(str(tmp_path / "stays.csv"), label="cost", task="regression",
                        ignore=("died", "notes"))  # fmt: skip
    with pytest.raises(DatasetError, match=r"column 'died' has 'no' in line 2.*ignore"):
        datasets.tables(str(tmp_path / "stays.csv"), label="cost", task="regression")
