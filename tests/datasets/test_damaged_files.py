"""Files that are damaged or odd in ways that readers met as bare tracebacks or did not notice."""

import io
import json
import re
import zipfile

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.labels import mapped_labels
from pflalign_jax.datasets.loaders.leaf import load_femnist_leaf, load_leaf
from pflalign_jax.datasets.loaders.shakespeare import load_shakespeare
from pflalign_jax.datasets.loaders.synthetic import make_synthetic
from pflalign_jax.datasets.loaders.tables import load_tables
from pflalign_jax.datasets.loaders.tff import load_femnist_tff
from pflalign_jax.datasets.loaders.uci_har import SIGNALS, load_uci_har


def leaf(tmp_path, users, data=None):
    """Write ``{user: (x, y)}`` as all_data/a.json and return the folder."""
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {u: {"x": x, "y": y} for u, (x, y) in users.items()} | (data or {}),
    }
    (tmp_path / "all_data").mkdir()
    (tmp_path / "all_data" / "a.json").write_text(json.dumps(content))
    return str(tmp_path)


def test_whole_numbers_as_labels_in_floating_point(tmp_path):
    examples = load_leaf(leaf(tmp_path, {"f_00000": ([[0.5], [1.5]], [1.0, 0.0])}))
    assert examples.y.tolist() == [1, 0] and examples.y.dtype == np.int32


def test_images_of_which_some_are_not_in_steps_of_a_byte(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (2, 784)) / 255
    other = [[0.1234] * 784]
    users = {"ann": (x.tolist(), [0, 1]), "bob": (other, [1])}
    examples = load_leaf(leaf(tmp_path, users), (28, 28, 1))
    assert examples.x.dtype == np.float32
    np.testing.assert_allclose(examples.x[:2].reshape(2, -1), x, rtol=1e-6)
    np.testing.assert_allclose(examples.x[2], np.float32(0.1234))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read as json"),
        ('{"users": 3, "num_samples": [1], "user_data": {}}', "of the wrong kind"),
        ('{"users": ["a"], "num_samples": [1], "user_data": [1]}', "of the wrong kind"),
        ('{"users": [["a"]], "num_samples": [0], "user_data": {}}', "has no lists 'x' and 'y'"),
        (
            '{"users": ["a"], "num_samples": [0], "user_data": {"a": {"x": null, "y": []}}}',
            "user 'a' has no lists 'x' and 'y'",
        ),
    ],
)
def test_json_of_other_kinds(tmp_path, text, message):
    (tmp_path / "all_data").mkdir()
    (tmp_path / "all_data" / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_leaf(str(tmp_path))


def test_odd_leaf_users(tmp_path):
    path = leaf(tmp_path, {"ann": ([[1]], [0])}, {"bob": {"x": [[1]], "y": [0]}})
    with pytest.raises(DatasetError, match=r"user 'bob' has examples .* not one of 'users'"):
        load_leaf(path)


def test_numbers_as_text_and_too_large_numbers(tmp_path):
    for i, (value, message) in enumerate((("1.5", "not of numbers"), (1e300, "infinite"))):
        (tmp_path / str(i)).mkdir()
        with pytest.raises(DatasetError, match=message):
            datasets.leaf(leaf(tmp_path / str(i), {"ann": ([[value]], [0])}))


def test_femnist_labels(tmp_path):
    white = [[1.0] * 784]
    (tmp_path / "text").mkdir()
    with pytest.raises(DatasetError, match="labels like '3'; FEMNIST's are the integers"):
        load_femnist_leaf(leaf(tmp_path / "text", {"ann": (white, ["3"])}))
    path = leaf(tmp_path, {"ann": (white * 2, [3, 40]), "bob": (white, [50])})
    digits = load_femnist_leaf(path, "digits")
    assert digits.owner.tolist() == ["ann"]
    assert digits.notes == ("1 users without digits to train on are left out.",)
    (tmp_path / "letters").mkdir()
    with pytest.raises(DatasetError, match="no user has digits"):
        load_femnist_leaf(leaf(tmp_path / "letters", {"bob": (white, [50])}), "digits")


def hdf5(tmp_path, clients, **options):
    h5py = pytest.importorskip("h5py")
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"fed_emnist_{split}.h5", "w") as file:
            for client, count in clients.items():
                group = file.create_group(f"examples/{client}")
                pixels = np.random.default_rng(0).random((count, 28, 28), np.float32)
                group.create_dataset("pixels", data=pixels, **options)
                group.create_dataset("label", data=np.zeros(count, np.int32))


def test_a_client_without_images(tmp_path):
    hdf5(tmp_path, {"a": 0, "b": 2})
    assert load_femnist_tff(tmp_path).owner.tolist() == ["b"] * 4


def test_a_damaged_block_in_hdf5(tmp_path):
    hdf5(tmp_path, {"a": 50}, compression="gzip")
    file = tmp_path / "fed_emnist_train.h5"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"fed_emnist_train\.h5 cannot be read .* it is damaged"):
        load_femnist_tff(tmp_path)


def test_examples_that_are_not_groups(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "fed_emnist_train.h5", "w") as file:
        file["examples"] = np.zeros(3)
    with pytest.raises(DatasetError, match="no clients below 'examples'"):
        load_femnist_tff(tmp_path)
    with h5py.File(tmp_path / "fed_emnist_train.h5", "w") as file:
        file["examples/a"] = np.zeros((2, 2))
    with pytest.raises(DatasetError, match=r"client 'a' .* has no 'pixels' and 'label'"):
        load_femnist_tff(tmp_path)


PLAY = """\
ACT I. SCENE I. Elsinore.
A platform before the castle. Enter FRANCISCO and BERNARDO, two sentinels.

HAMLET. I will watch tonight;
TO be or not to be, perchance 'twill walk again.
HAMLET. O God, I could be bounded in a nutshell.
MRS. PAGE. What, have I scaped love-letters in the holiday-time?

SCENE II.
A room of state in the castle, with a throne and with many people in it.
*** END OF THE PROJECT GUTENBERG EBOOK HAMLET ***
THE FULL LICENSE
is long and is nobody's speech, whatever the capitals above it say.
"""


def test_speakers_of_a_play(tmp_path):
    (tmp_path / "hamlet.txt").write_text(PLAY)
    examples = load_shakespeare(str(tmp_path), length=10)
    assert set(examples.owner) == {"hamlet:HAMLET", "hamlet:MRS. PAGE"}
    speech = "I will watch tonight;\nTO be or not to be, perchance 'twill walk again.\n"
    speech += "O God, I could be bounded in a nutshell."
    letters = sorted(set(speech + "What, have I scaped love-letters in the holiday-time?"))
    rows = examples.x[examples.owner == "hamlet:HAMLET"]
    assert "".join(letters[t] for t in rows.ravel()) == speech[: rows.size]


def test_damaged_har(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for part in ("train", "test"):
        files[f"{part}/y_{part}.txt"] = files[f"{part}/subject_{part}.txt"] = "1\n2\n"
        table = "\n".join(" ".join(f"{v:.7e}" for v in row) for row in rng.normal(size=(2, 128)))
        for signal in SIGNALS:
            files[f"{part}/Inertial Signals/{signal}_{part}.txt"] = table
    path = tmp_path / "har.zip"

    def write(files):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(f"UCI HAR Dataset/{name}", text)
        return bytearray(buffer.getvalue())

    path.write_bytes(write(files))
    assert "labels mapped: 1..6 -> 0..5." in load_uci_har(str(path)).notes
    raw = write(files)
    first = re.search(rb"body_acc_x_train\.txt", raw).end()
    raw[first : first + 200] = b"\xff" * 200
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"body_acc_x_train\.txt cannot be read from .*har\.zip"):
        load_uci_har(str(path))
    path.write_bytes(write(files | {"train/y_train.txt": ""}))
    with pytest.raises(DatasetError, match=r"train/y_train\.txt is empty"):
        load_uci_har(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,a,label\nx,1,0\ny,2,\n", "column 'label': no label at line 3"),
        ("client,a,label\n,1,0\ny,2,1\n", "column 'client': no client at line 2"),
        ("client,a,label\nx,1e300,0\ny,2,1\n", "column 'a' has '1e300' in line 2"),
    ],
)
def test_cells_that_are_missing_or_too_large(tmp_path, text, message):
    (tmp_path / "all.csv").write_text(text)
    with pytest.raises(DatasetError, match=rf"all\.csv: {message}"):
        load_tables(str(tmp_path / "all.csv"))


@pytest.mark.parametrize("label", [["x", None], [1.0, float("nan")]])
def test_missing_labels_in_parquet(tmp_path, label):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"client": ["p", "q"], "a": [1, 2], "label": label}), tmp_path / "t")
    (tmp_path / "t").rename(tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="column 'label': no label at row 2"):
        load_tables(str(tmp_path / "t.parquet"))


def test_csv_of_excel_and_long_numbers_as_labels(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("\ufefflabel,a,client\n0,1,x\n99999999999999999999,1,y\n", encoding="utf8")
    assert load_tables(str(path)).y.tolist() == [0, 1]


def test_the_model_of_iid_clients_does_not_depend_on_their_number():
    few, many = (make_synthetic(devices=devices, iid=True) for devices in (2, 3))
    np.testing.assert_array_equal(few.y, many.y[: len(few.y)])


def test_no_labels():
    with pytest.raises(DatasetError, match="here has no labels"):
        mapped_labels(np.zeros(0, int), "here")
