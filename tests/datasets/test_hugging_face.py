"""Folders as `Dataset.save_to_disk` of Hugging Face writes them, and parquet files."""

import io
import json
import os

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.hugging_face import load_hugging_face

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


def png(value, size=(4, 5), mode="L"):
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.new(mode, (size[1], size[0]), value).save(buffer, "png")
    return buffer.getvalue()


def table(columns, classes=("cat", "dog", "fox")):
    """Return a table whose schema says what `datasets` writes into it."""
    features = {name: {"_type": "Value"} for name in columns}
    features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.table(columns).replace_schema_metadata(metadata)


def save(folder, rows, shards=1):
    """Write what `Dataset.save_to_disk` writes."""
    os.makedirs(folder)
    files = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    size = -(-rows.num_rows // shards)
    for i, name in enumerate(files):
        with pyarrow.OSFile(str(folder / name), "wb") as sink:
            with pyarrow.RecordBatchStreamWriter(sink, rows.schema) as writer:
                writer.write_table(rows.slice(i * size, size), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in files], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def save_dict(folder, **splits):
    """Write what `DatasetDict.save_to_disk` writes."""
    for name, rows in splits.items():
        save(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def numbers(count, start=0, **more):
    columns = {
        "a": np.arange(start, start + count, dtype=np.float64),
        "b": np.arange(count),
        "label": np.arange(count) % 2,
        "who": np.array(["ann", "bob"])[np.arange(count) % 2],
    }
    return table(columns | more)


def test_splits_and_a_client_column(tmp_path):
    save_dict(tmp_path / "set", train=numbers(12), test=numbers(4, 100))
    data = datasets.hugging_face(str(tmp_path / "set"), client_column="who")
    assert data.name == "set" and data.client_names.tolist() == ["ann", "bob"]
    assert data.num_classes == 3  # the third class has no example
    assert {s: owned.sizes.tolist() for s, owned in data.splits.items()} == {
        "train": [6, 6],
        "validation": [0, 0],
        "test": [2, 2],
    }
    assert data.x[data.splits["test"].of_client(1)].tolist() == [[101, 1], [103, 3]]
    assert any("no validation examples" in note for note in data.notes)
    asked = datasets.hugging_face(
        str(tmp_path / "set"), client_column="who", validation_fraction=0.3
    )
    assert asked.splits["validation"].sizes.tolist() == [2, 2]
    assert asked.splits["test"].sizes.tolist() == [2, 2]


def test_a_validation_split_is_kept(tmp_path):
    save_dict(tmp_path / "set", train=numbers(8), validation=numbers(4), test=numbers(6))
    data = datasets.hugging_face(str(tmp_path / "set"), client_column="who")
    assert [data.splits[s].sizes.tolist() for s in datasets.SPLITS] == [[4, 4], [2, 2], [3, 3]]


def test_partitions_of_flwr_datasets(tmp_path):
    """One saved dataset for each client, without splits: they are split here."""
    for k, count in enumerate((20, 10)):
        rows = numbers(count, 100 * k).drop_columns(["who"])
        save(tmp_path / "parts" / f"partition_{k}", rows, shards=3)
    examples = load_hugging_face(str(tmp_path / "parts"))
    assert examples.x[:, 0].tolist() == [*range(20), *range(100, 110)]
    data = datasets.hugging_face(str(tmp_path / "parts"))
    assert data.client_names.tolist() == ["partition_0", "partition_1"]
    assert data.splits["validation"].sizes.tolist() == [2, 1]


def test_partitions_that_are_split(tmp_path):
    for k in range(3):
        save_dict(tmp_path / f"{k}", train=numbers(6), test=numbers(2))
    data = datasets.hugging_face(str(tmp_path), features="a")
    assert data.client_names.tolist() == ["0", "1", "2"] and data.x.shape == (24, 1)
    assert [data.splits[s].sizes.tolist() for s in datasets.SPLITS] == [[6] * 3, [0] * 3, [2] * 3]


@pytest.mark.parametrize("place", ["", "data"])
def test_parquet_files_by_split(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    for i in range(2):
        file = tmp_path / place / f"train-0000{i}-of-00002.parquet"
        parquet.write_table(numbers(4, 10 * i), file)
    parquet.write_table(numbers(2, 50), tmp_path / place / "test-00000-of-00001.parquet")
    examples = load_hugging_face(str(tmp_path), client_column="who")
    assert sorted(examples.x[:, 0].tolist()) == [0, 1, 2, 3, 10, 11, 12, 13, 50, 51]
    assert examples.split[examples.x[:, 0] >= 50].tolist() == ["test"] * 2
    assert examples.num_classes == 3


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3)])
def test_images(tmp_path, mode, channels):
    files = [{"bytes": png(value, mode=mode), "path": "x.png"} for value in (0, 7, 9)]
    rows = table({"image": pyarrow.array(files, IMAGE), "note": ["a"] * 3, "label": [0, 1, 1]})
    save(tmp_path / "set", rows)
    examples = load_hugging_face(str(tmp_path / "set"))
    assert examples.x.shape == (3, 4, 5, channels) and examples.x.dtype == np.uint8
    assert examples.x[:, 0, 0, 0].tolist() == [0, 7, 9] and examples.owner is None
    assert examples.split is None


def test_lists(tmp_path):
    signals = np.arange(24.0).reshape(3, 4, 2)
    columns = {"x": signals.tolist(), "label": ["no", "yes", "no"]}
    save(tmp_path / "signals", table(columns, classes=()))
    examples = load_hugging_face(str(tmp_path / "signals"))
    np.testing.assert_array_equal(examples.x, signals)
    assert examples.y.tolist() == [0, 1, 0]
    tokens = {"input_ids": [[1, 2], [3, 4], [5, 6]], "label": [0, 1, 1]}
    save(tmp_path / "tokens", table(tokens))
    assert load_hugging_face(str(tmp_path / "tokens")).x.dtype == np.int32
    bytes_2d = pyarrow.list_(pyarrow.list_(pyarrow.uint8()))
    grey = pyarrow.array(np.full((3, 2, 2), 9).tolist(), bytes_2d)
    save(tmp_path / "grey", table({"image": grey, "label": [0, 1, 1]}))
    assert load_hugging_face(str(tmp_path / "grey")).x.shape == (3, 2, 2, 1)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (numbers(3), {"label": "target"}, r"arrow has no column 'target', only \['a', 'b'"),
        (numbers(3), {}, "column 'who' is of type string.*turn text into tokens"),
        (numbers(3, label=[0, -1, 1]), {"features": "a"}, r"label -1 is outside 0\.\.2"),
        (numbers(3, label=[0, 3, 1]), {"features": "a"}, r"label 3 is outside 0\.\.2"),
        (numbers(3, label=[0, None, 1]), {"features": "a"}, "'label' has no value in row 1"),
        (numbers(3, a=[1.0, 2.0, np.nan]), {"features": "a"}, "row 2 of the split has NaN"),
        (numbers(3, a=[[1], [2, 3], [4]]), {"features": "a"}, "'a' has lists of 1 to 2 values"),
        (numbers(2, a=[[1, 2], [3, None]]), {"features": "a"}, "'a' has no value in row 1"),
        (
            numbers(2, who=pyarrow.array([{"bytes": b"no", "path": ""}] * 2, IMAGE)),
            {},
            "column 'who' has no image in row 0",
        ),
        (
            numbers(2, who=pyarrow.array([{"bytes": None, "path": "/x.png"}] * 2, IMAGE)),
            {},
            "has no image in row 0.*with the images in it",
        ),
        (
            numbers(2, who=pyarrow.array([{"bytes": png(1, (2, s)), "path": ""} for s in (2, 3)])),
            {},
            "the image in row 1 of the split has shape",
        ),
    ],
)
def test_bad_contents_are_named(tmp_path, rows, options, message):
    save(tmp_path / "set", rows)
    with pytest.raises(DatasetError, match=message):
        load_hugging_face(str(tmp_path / "set"), **options)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DatasetError, match="has no arrow or parquet file; read is a folder"):
        load_hugging_face(str(tmp_path))
    with pytest.raises(DatasetError, match="nowhere is not a directory"):
        load_hugging_face(str(tmp_path / "nowhere"))
    save_dict(tmp_path / "set", train=numbers(6), unsupervised=numbers(2))
    with pytest.raises(DatasetError, match="has a split 'unsupervised'; those that are known"):
        load_hugging_face(str(tmp_path / "set"))
    train = tmp_path / "set" / "train"
    file = train / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    for cut in (0, 100, len(content) // 2):
        file.write_bytes(content[:cut])
        with pytest.raises(DatasetError, match=r"arrow cannot be read as arrow .*truncated"):
            load_hugging_face(str(train))
    file.unlink()
    with pytest.raises(DatasetError, match=r"arrow cannot be read as arrow .*it is missing"):
        load_hugging_face(str(train))
    (train / "state.json").write_text("{")
    with pytest.raises(DatasetError, match=r"state\.json cannot be read"):
        load_hugging_face(str(train))
    (train / "indices.arrow").touch()
    with pytest.raises(DatasetError, match="saved by datasets 1, with a selection"):
        load_hugging_face(str(train))


def test_clients_that_do_not_fit_together_are_named(tmp_path):
    save(tmp_path / "0", numbers(4).drop_columns(["who"]))
    save(tmp_path / "1", numbers(4).drop_columns(["who", "b"]))
    with pytest.raises(DatasetError, match=r"1/data.*has columns .*; it needs \['a', 'b'\]"):
        load_hugging_face(str(tmp_path))
    save_dict(tmp_path / "2", train=numbers(4))
    with pytest.raises(DatasetError, match=r"belongs to no split and others do"):
        load_hugging_face(str(tmp_path))
