"""The same refusals whatever way data come in."""

import json

import numpy as np
import pytest

from pflalign_jax import datasets, models
from pflalign_jax.datasets import DatasetError, Examples
from pflalign_jax.datasets.checks import checked_examples
from pflalign_jax.datasets.values import is_missing, numbers_or_names

COUNT = 60


def examples(**replaced):
    rng = np.random.default_rng(0)
    values = {
        "name": "mine",
        "x": rng.normal(size=(COUNT, 4)).astype(np.float32),
        "y": rng.integers(0, 3, COUNT).astype(np.int32),
        "num_classes": 3,
        "owner": np.repeat(["a", "b", "c"], COUNT // 3),
    }
    return Examples(**{**values, **replaced})


def with_value(array, row, value, dtype=None):
    """Return a copy with one value of one row replaced."""
    array = np.array(array, dtype)
    array[row] = value
    return array


GOOD = examples()
BAD_FEATURE = np.array([0, 0, np.nan, 0])


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {"x": with_value(GOOD.x, 23, BAD_FEATURE)},
            r"mine: 1 examples .* first is example 23 \(client 'b'\): feature 2 is nan; remove or",
        ),
        ({"x": with_value(GOOD.x, 3, -np.inf)}, r"feature 0 is -inf"),
        (
            {"x": with_value(GOOD.x, 3, 1e300, float)},
            r"feature 0 is 1e\+300, which is too large for float32",
        ),
        ({"x": np.full((COUNT, 2, 2), np.nan)}, r"60 examples .*: feature \(0, 0\) is nan"),
        ({"x": GOOD.x.astype(str)}, r"x is <U\d+; it must be of numbers"),
        ({"x": GOOD.x[:, 0]}, r"x has shape \(60,\); .*x\[:, None\]"),
        ({"x": GOOD.x[:, :0]}, r"x has shape \(60, 0\)"),
        ({"x": GOOD.x[:50]}, "x has 50 examples, y has 60"),
        ({"x": GOOD.x[:0], "y": GOOD.y[:0], "owner": None}, "no examples"),
        ({"x": np.arange(COUNT)[:, None] - 7}, r"tokens .*example 0 .* has -7; .*floats"),
        ({"y": with_value(GOOD.y, 5, 7)}, r"label 7 at example 5 \(client 'a'\) is outside 0\.\.2"),
        ({"y": with_value(GOOD.y, 5, -1)}, r"label -1 at example 5 .* without a label"),
        ({"y": GOOD.y[:50], "owner": GOOD.owner[:50]}, "x has 60 examples, y has 50"),
        ({"y": with_value(GOOD.y, 5, np.nan, float)}, r"label at example 5 \(client 'a'\) is nan"),
        ({"y": GOOD.y + np.linspace(0, 1, COUNT)}, "different ones: .*regression"),
        ({"y": GOOD.y.astype(str)}, r"y is <U\d+; .*return_inverse"),
        ({"y": np.eye(3)[GOOD.y]}, r"y has shape \(60, 3\).*argmax"),
        ({"owner": with_value(GOOD.owner, 9, "")}, "no client at example 9 but ''.*leave such"),
        ({"owner": with_value(np.repeat([1.0, 2], 30), 9, np.nan)}, "no client at .* 9 but nan"),
        ({"owner": GOOD.owner[:50]}, "x has 60 examples, client has 50"),
        ({"owner": GOOD.owner[:, None]}, r"client has shape \(60, 1\)"),
        ({"split": np.full(COUNT, "dev")}, "split has the value 'dev' at example 0"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_trained_on(replaced, message):
    with pytest.raises(DatasetError, match=message):
        datasets.partition_examples(examples(**replaced))


def write_npz(path, x, y, client):
    np.savez(path / "data.npz", x=np.array(x, float), y=np.array(y), client=client)
    return datasets.npz, path / "data.npz"


def write_csv(path, x, y, client):
    rows = [f"{c},{row[0]},{label}" for c, row, label in zip(client, x, y, strict=True)]
    (path / "data.csv").write_text("\n".join(["client,a,label", *rows]))
    return datasets.tables, path / "data.csv"


def write_parquet(path, x, y, client):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"client": client, "a": [row[0] for row in x], "label": y}
    pq.write_table(pa.table(columns), path / "data.parquet")
    return datasets.tables, path / "data.parquet"


def write_leaf(path, x, y, client):
    users = sorted(set(client))
    data = {u: {"x": [], "y": []} for u in users}
    for c, row, label in zip(client, x, y, strict=True):
        data[c]["x"].append(row), data[c]["y"].append(label)
    counts = [len(data[u]["y"]) for u in users]
    (path / "all_data").mkdir()
    content = {"users": users, "num_samples": counts, "user_data": data}
    (path / "all_data" / "data.json").write_text(json.dumps(content))
    return datasets.leaf, path


@pytest.mark.parametrize("write", [write_npz, write_csv, write_parquet, write_leaf])
@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("x", [float("nan")], "nan"),
        ("x", [float("inf")], "inf"),
        ("x", [1e300], "in(f|ite number) in float32|inf|too large for float32"),
        ("y", -3, "label -3 at .* is negative"),
        ("y", 0.5, "regression|labels of type float64"),
        ("client", "", "no (client|value)"),
        ("client", "NA", "no (client|value)"),
    ],
)
def test_the_same_refusals_of_all_files(tmp_path, write, kind, value, message):
    columns = {"x": [[float(i)] for i in range(8)], "y": [0, 1] * 4, "client": ["p", "q"] * 4}
    columns[kind][4] = value
    load, path = write(tmp_path, **columns)
    with pytest.raises(DatasetError, match=message) as error:
        load(str(path))
    assert str(tmp_path) in str(error.value)  # every message says where


@pytest.mark.parametrize(
    "labels", [[-1.0, 1.0], [b"no", b"yes"], ["no", "yes"], [[0], [1]], [0.0, 1.0]]
)
@pytest.mark.parametrize("num_classes", [None, 2])
def test_labels_that_npz_takes(tmp_path, labels, num_classes):
    y = np.array(labels * 10)
    np.savez(tmp_path / "d.npz", x=np.ones((20, 3)), y=y, client=np.repeat([1.0, 2.0], 10))
    data = datasets.npz(str(tmp_path / "d.npz"), num_classes=num_classes)
    assert data.y.tolist() == [0, 1] * 10 and data.y.dtype == np.int32 and data.num_classes == 2
    assert data.client_names.tolist() == ["1", "2"]  # not "1.0"


def test_more_names_than_classes(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((3, 1)), y=["a", "b", "c"], client=[0, 0, 0])
    with pytest.raises(DatasetError, match="3 different labels, more than num_classes=2"):
        datasets.npz(str(tmp_path / "d.npz"), num_classes=2)


def test_npz_leaves_out_what_has_no_owner_or_label_if_asked(tmp_path):
    client = np.array([1.0, np.nan, 2.0, 2.0, 1.0, 2.0])
    y = np.array(["u", "v", "NA", "u", "v", "v"])
    np.savez(tmp_path / "d.npz", x=np.arange(6.0)[:, None], y=y, client=client)
    data = datasets.npz(str(tmp_path / "d.npz"), missing="leave_out")
    assert data.x.ravel().tolist() == [0, 3, 4, 5] and data.y.tolist() == [0, 0, 1, 1]
    assert "2 examples without client or label are left out." in data.notes
    with pytest.raises(DatasetError, match="missing='drop' is unknown"):
        datasets.npz(str(tmp_path / "d.npz"), missing="drop")


def test_missing_values_and_numbers():
    assert is_missing(np.array([1.0, np.nan])).tolist() == [False, True]
    assert is_missing(np.array([None, "a", float("nan"), " null "], object)).tolist() == [
        True, False, True, True,
    ]  # fmt: skip
    assert is_missing(np.array([b"NA", b"b"])).tolist() == [True, False]
    assert numbers_or_names(np.array(["1.0", "1", "+1", "2e0"]), "a file").tolist() == [1, 1, 1, 2]
    assert numbers_or_names(np.array(["7", "007"]), "a file").tolist() == ["7", "007"]
    assert numbers_or_names(np.array(["inf", "1"]), "a file").tolist() == ["inf", "1"]
    long = ["9007199254740993", "9007199254740992"]  # one number in float64
    assert len(set(numbers_or_names(np.array(long), "a file").tolist())) == 2
    assert len(set(numbers_or_names(np.array([long[0], long[1], "1.0"]), "a file").tolist())) == 3


def test_bytes_without_image_axes_are_no_pixels():
    flags = np.random.default_rng(0).integers(0, 2, (COUNT, 20))
    as_bytes, as_floats = (
        datasets.partition_examples(examples(x=flags.astype(t))) for t in (np.uint8, np.float32)
    )
    assert (as_bytes.mean, as_bytes.std) == (as_floats.mean, as_floats.std) == (0, 1)
    images = datasets.partition_examples(examples(x=np.zeros((COUNT, 8, 8), np.uint8)))
    assert images.x.shape == (COUNT, 8, 8, 1) and images.mean == 127.5


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_are_turned(channels, dtype):
    x = np.random.default_rng(0).integers(0, 255, (COUNT, channels, 12, 16)).astype(dtype)
    data = datasets.partition_examples(examples(x=x), normalise="train")
    np.testing.assert_array_equal(data.x, x.transpose(0, 2, 3, 1))
    assert data.mean.size == channels
    assert data.notes == (
        f"x of shape [{channels}, 12, 16] are images with channels first; they were turned to "
        f"[12, 16, {channels}].",
    )
    last = x.transpose(0, 2, 3, 1)
    assert checked_examples(examples(x=last)).x is last


@pytest.mark.parametrize(
    ("name", "shape"), [("cnn", (28, 28)), ("resnet", (28, 28)), ("cnn", (8, 8, 1))]
)
def test_models_of_images_refuse_other_shapes(name, shape):
    import jax

    with pytest.raises(ValueError, match=rf"{name} takes images \[B, H, W, C\].*x\[\.\.\., None\]"):
        getattr(models, name)(3).init(jax.random.key(0), np.zeros((1, *shape), np.float32))


def test_features_of_very_different_size_are_noted():
    x = GOOD.x * np.array([1, 1, 5000, 1], np.float32)
    (note,) = datasets.partition_examples(examples(x=x)).notes
    assert "feature 2 at most" in note and "normalise='train'" in note
    assert datasets.partition_examples(examples(x=x), normalise="train").notes == ()
    assert datasets.partition_examples(GOOD).notes == ()


def test_large_integers_are_told_from_counts():
    counts = examples(x=np.random.default_rng(0).integers(0, 60, (COUNT, 6)))
    with pytest.raises(DatasetError, match=r"tokens, and x is int64; .*astype\(np\.float32\)"):
        datasets.partition_examples(counts, normalise="train")


def test_labels_at_every_position_of_a_signal():
    y = np.random.default_rng(0).integers(0, 3, (COUNT, 5)).astype(np.int32)
    assert checked_examples(examples(x=np.ones((COUNT, 5, 2), np.float32), y=y)).y is y
    with pytest.raises(DatasetError, match=r"label 3 at example 2 .* outside 0\.\.2"):
        checked_examples(examples(x=np.ones((COUNT, 5, 2)), y=with_value(y, (2, 4), 3)))


def test_new_clients_without_test_examples():
    with pytest.raises(DatasetError, match="none of the 1 new clients has a test example"):
        datasets.partition_examples(GOOD, num_new_clients=1, test_fraction=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "dirichlet", "alpha": np.inf}, "alpha=inf is not allowed; .*'iid'"),
        ({"partition": "extended_dirichlet", "alpha": np.inf}, "alpha=inf is not allowed"),
        ({"partition": "dirichlet_balanced", "alpha": 1e300}, r"alpha=1e\+300 is not allowed"),
        ({"partition": "lognormal", "sigma": 1e4}, r"sigma=10000\.0 is not allowed"),
        ({"partition": "zipf", "exponent": np.inf}, "exponent=inf is not allowed"),
        ({"seed": -1}, "seed=-1 is not allowed; it must be a whole number >= 0"),
        ({"seed": 0.5}, r"seed=0\.5 is not allowed"),
        ({"partition": "iid", "num_clients": 2.5}, r"num_clients=2\.5 is not allowed"),
        ({"fraction": 1e-9}, "fraction=1e-09 of 60 examples leaves none"),
    ],
)
def test_extremes_of_partitions(options, message):
    with pytest.raises(DatasetError, match=message):
        datasets.partition_examples(GOOD, **options)


def test_owners_that_are_not_used_are_noted():
    data = datasets.partition_examples(GOOD, partition="iid", num_clients=4)
    assert data.notes[0].startswith("the 3 clients of the data are not used: partition='iid'")
