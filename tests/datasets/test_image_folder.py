"""Folders of images, and tables that name them, on small files made here."""

import numpy as np
import PIL.Image
import pytest

from pflalign_jax import datasets, tasks
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.image_folder import load_image_folder

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
RGB = np.stack([GREY, GREY + 1, GREY + 2], axis=2)


def save(path, pixels=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def pets(tmp_path, *others):
    """Write a folder with two clients and two classes; ``others`` are further (name, pixels)."""
    root = tmp_path / "pets"
    save(root / "south/dog/b.png", GREY + 2)
    save(root / "south/dog/a.PNG", GREY + 1)
    save(root / "north/cat/x.png", GREY)
    for name, pixels in others:
        save(root / name, pixels)
    return root


def table(tmp_path, text, count=4):
    for i in range(count):
        save(tmp_path / f"images/{i}.png", GREY + i)
    path = tmp_path / "all.csv"
    path.write_text(text)
    return str(path)


ROWS = "".join(f"images/{i}.png,{'dog' if i % 2 else 'cat'},c{i // 2}\n" for i in range(4))
NAMED = f"file,label,client\n{ROWS}"


def test_clients_and_classes_are_folders(tmp_path):
    root = pets(tmp_path)
    (root / "north/bird").mkdir()  # a client without a class
    for hidden in ("south/dog/._b.png", "south/.thumbnails/a.png", ".DS_Store"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"no image")
    (root / "south/dog/notes.txt").write_text("good dogs")
    examples = load_image_folder(str(root))
    assert examples.name == "pets" and examples.x.dtype == np.uint8
    np.testing.assert_array_equal(examples.x[..., 0], [GREY, GREY + 1, GREY + 2])
    assert examples.y.tolist() == [0, 1, 1] and examples.num_classes == 2
    assert examples.owner.tolist() == ["north", "south", "south"] and examples.split is None
    mapped, not_read = examples.notes
    assert mapped == "labels mapped: 'cat' -> 0, 'dog' -> 1." and not_read.startswith("1 files")
    data = datasets.image_folder(str(root))
    assert data.client_names.tolist() == ["north", "south"] and data.mean == 127.5


def test_jpeg_and_colour(tmp_path):
    for name in ("a/0/x.jpg", "a/1/x.JPEG", "b/1/y.jpeg"):
        save(tmp_path / name, RGB, format="JPEG", quality=95)
    examples = load_image_folder(str(tmp_path))
    assert examples.x.shape == (3, 6, 8, 3) and examples.y.tolist() == [0, 1, 1]
    assert np.abs(examples.x[0].astype(int) - RGB).max() < 12


def test_sizes_are_equal_or_made_equal(tmp_path):
    root = pets(tmp_path, ("south/cat/small.png", GREY[:3, :4]))
    message = r"pets/south/cat/small\.png is 3x4 .*pets/north/cat/x\.png 6x8; .*size=\(H, W\)"
    with pytest.raises(DatasetError, match=message):
        load_image_folder(str(root))
    examples = load_image_folder(str(root), size=(12, 10))
    assert examples.x.shape == (4, 12, 10, 1)
    save(root / "south/cat/small.png", np.full((3, 4), 77, np.uint8))
    assert (load_image_folder(str(root), size=(12, 10)).x[1] == 77).all()


def test_images_are_all_grey_or_all_in_colour(tmp_path):
    root = pets(tmp_path, ("south/cat/red.png", RGB))
    message = r"cat/red\.png is in colour, .*north/cat/x\.png grey; .*channels=1, .*channels=3"
    with pytest.raises(DatasetError, match=message):
        load_image_folder(str(root))
    assert load_image_folder(str(root), channels=1).x.shape == (4, 6, 8, 1)
    examples = load_image_folder(str(root), channels=3)
    np.testing.assert_array_equal(examples.x[0], np.repeat(GREY[..., None], 3, axis=2))
    np.testing.assert_array_equal(examples.x[1], RGB)


def test_transparency_is_dropped_and_bits_are_not(tmp_path):
    alpha = np.full((6, 8, 1), 9, np.uint8)
    root = pets(tmp_path, ("south/cat/clear.png", np.concatenate([RGB, alpha], axis=2)))
    np.testing.assert_array_equal(load_image_folder(str(root), channels=3).x[1], RGB)
    save(root / "south/cat/clear.png", GREY.astype(np.uint16) * 1000)
    with pytest.raises(DatasetError, match=r"clear\.png cannot be read as an image \(it has more"):
        load_image_folder(str(root))


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_damaged_images_are_named(tmp_path, content):
    root = pets(tmp_path)
    file = root / "south/dog/b.png"
    file.write_bytes(file.read_bytes()[:-30] if content is None else content)
    with pytest.raises(DatasetError, match=r"south/dog/b\.png cannot be read as an image \(.*repl"):
        load_image_folder(str(root))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([("top.png", GREY)], r"top\.png stands beside the folders of clients; images are client/"),
        ([("cat/1.png", GREY)], r"cat/1\.png stands beside the folders of classes of a client"),
        ([("train/north/cat/1.png", GREY)], "north/cat is a folder inside that of a class"),
    ],
)
def test_images_that_stand_elsewhere_are_named(tmp_path, others, message):
    with pytest.raises(DatasetError, match=message):
        load_image_folder(str(pets(tmp_path, *others)))


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"has no image; images are client/class"):
        load_image_folder(str(tmp_path))
    root = pets(tmp_path)
    (root / "east/cat").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"pets/east has no image; remove the folder or fill it"):
        load_image_folder(str(root))
    with pytest.raises(DatasetError, match="nowhere is no folder and no csv file; images are"):
        load_image_folder(str(tmp_path / "nowhere"))


def test_a_table_names_images(tmp_path):
    examples = load_image_folder(table(tmp_path, NAMED))
    np.testing.assert_array_equal(examples.x[3, ..., 0], GREY + 3)
    assert examples.y.tolist() == [0, 1, 0, 1] and examples.name == "all"
    assert examples.owner.tolist() == ["c0", "c0", "c1", "c1"] and examples.task is None
    rows = "".join(f"images/{i}.png,{i},{i % 2},{i / 3},train,9\n" for i in range(4))
    path = table(tmp_path, f"picture,who,fever,dose,part,age\n{rows}")
    names = dict(file_column="picture", client_column="who", split_column="part")
    examples = load_image_folder(path, label="dose", task="regression", **names)
    assert examples.y.dtype == np.float32 and examples.owner.tolist() == [0, 1, 2, 3]
    assert examples.split.tolist() == ["train"] * 4
    assert examples.notes == ("columns ['age', 'fever'] are not read.",)
    data = datasets.image_folder(path, label="fever", task="binary", **names)
    assert tasks.infer_task(data).name == "binary" and data.num_classes == 2
    several = load_image_folder(path, label=("fever", "fever"), task="multilabel", **names)
    assert several.y.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (NAMED + "images/9.png,cat,c0\n", {}, r"line 6 of .*all\.csv: .*9\.png cannot be read as"),
        (NAMED + "images/0.png,cat,c1\n", {}, r"line 6 names 0\.png once more, after line 2"),
        (NAMED.replace(",c1", ",", 1), {}, "column 'client': no client at line 4 but ''"),
        (NAMED.replace("dog", "NA", 1), {}, "column 'label': no label at line 3 but 'NA'"),
        (NAMED.replace("images/2.png", ""), {}, "column 'file': no file at line 4 but ''"),
        (NAMED, {"label": "kind"}, r"has no column 'kind', only \['client', 'file', 'label'\]"),
        (NAMED, {"split_column": "label"}, "label has the value 'cat' in line 2"),
        (NAMED, {"task": "regression"}, "column 'label' has 'cat' in line 2"),
        (NAMED, {"label": ("label",)}, "name one column"),
        (NAMED, {"size": (0, 3)}, r"size=\(0, 3\) is not allowed"),
        (NAMED, {"channels": 4}, "channels=4 is not allowed; it must be 1 or 3"),
        (NAMED, {"missing": "drop"}, "missing='drop' is unknown"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, options, message):
    with pytest.raises(DatasetError, match=message):
        load_image_folder(table(tmp_path, text), **options)


def test_rows_without_client_can_be_left_out(tmp_path):
    path = table(tmp_path, NAMED.replace(",c1", ",", 1))
    examples = load_image_folder(path, missing="leave_out")
    assert len(examples.x) == 3 and examples.notes[0].startswith("1 rows without a value in file")
    with pytest.raises(DatasetError, match="are names of columns; give the path of a csv"):
        load_image_folder(str(tmp_path), label="kind")
