"""Text loaders on small files in the real formats."""

import csv
import json

import h5py
import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.ag_news import load_ag_news
from pflalign_jax.datasets.loaders.shakespeare import LETTERS, load_shakespeare

PLAY = """THE TRAGEDY OF TESTS
by nobody

ACT I
 ANNE. To be tested, or not to be tested,
that is the question here.
BOB: Nay.
 ANNE.
And yet it runs on and on.
"""


def text_of(tokens, letters=LETTERS):
    return "".join(letters[t] for t in tokens)


def leaf_json(folder, split, **users):
    (folder / split).mkdir(parents=True)
    data = {name: {"x": [t[:80] for t in texts], "y": [t[80:] for t in texts]}
            for name, texts in users.items()}  # fmt: skip
    content = {"users": list(users), "num_samples": [len(t) for t in users.values()],
               "user_data": data}  # fmt: skip
    (folder / split / f"all_data_{split}_9.json").write_text(json.dumps(content))


def test_shakespeare_from_leaf(tmp_path):
    assert len(LETTERS) == 80 == len(set(LETTERS))
    line = ("To be, or not to be: that is the question. " * 3)[:81]
    other = "x" * 80 + "é"
    leaf_json(tmp_path, "train", HAMLET=[line, other], GHOST=[line])
    leaf_json(tmp_path, "test", HAMLET=[line])
    examples = load_shakespeare(str(tmp_path))
    assert examples.x.shape == examples.y.shape == (4, 80) and examples.num_classes == 80
    assert text_of(examples.x[0]) == line[:80] and text_of(examples.y[0]) == line[1:]
    assert text_of(examples.y[1])[-1] == " "
    assert examples.notes == ("1 characters outside LEAF's vocabulary are read as spaces.",)
    assert examples.owner.tolist() == ["HAMLET", "HAMLET", "GHOST", "HAMLET"]


def test_leafs_examples_have_80_characters(tmp_path):
    leaf_json(tmp_path, "train", HAMLET=["short"])
    leaf_json(tmp_path, "test", HAMLET=["x" * 81])
    with pytest.raises(DatasetError, match=r"user 'HAMLET' has examples of \[5, 79\] characters"):
        load_shakespeare(str(tmp_path))


def test_shakespeare_from_tff(tmp_path):
    for split, texts in (("train", [b"abcdefgh", b"ij"]), ("test", [b"klmnop"])):
        with h5py.File(tmp_path / f"shakespeare_{split}.h5", "w") as file:
            file["examples/PLAY_ROLE/snippets"] = np.array(texts)
            file["examples/PLAY_MUTE/snippets"] = np.array([b"a"])
    examples = load_shakespeare(str(tmp_path), length=5)
    assert [text_of(x) for x in examples.x] == ["abcde", "fgh\ni", "klmno"]
    assert [text_of(y) for y in examples.y] == ["bcdef", "gh\nij", "lmnop"]
    assert examples.split.tolist() == ["train", "train", "test"]
    assert "1 roles with too little text" in examples.notes[0]


def test_plays_by_speaking_role(tmp_path):
    (tmp_path / "tests.txt").write_text(PLAY)
    examples = load_shakespeare(str(tmp_path), length=10)
    letters = "".join(sorted(set("To be tested, or not to be tested,\nthat is the question here."
                                 "\nNay.And yet it runs on and on.by nobody")))  # fmt: skip
    assert examples.num_classes == len(letters)
    anne = examples.x[examples.owner == "tests:ANNE"]
    spoken = ("To be tested, or not to be tested,\nthat is the question here.\n"
              "And yet it runs on and on.")  # fmt: skip
    assert "".join(text_of(x, letters) for x in anne) == spoken[: 10 * len(anne)]
    assert len(anne) == (len(spoken) - 1) // 10
    assert "tests:BOB" not in examples.owner  # "Nay." is too short
    data = datasets.shakespeare(str(tmp_path), length=10, partition="natural", min_examples=3)
    train, test = (data.splits[s].indices for s in ("train", "test"))
    assert train.max() < test.min()  # in time


def test_bad_shakespeare_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"neither LEAF's .* nor TFF's .* nor \*\.txt"):
        load_shakespeare(str(tmp_path))
    (tmp_path / "a.txt").write_text("no speaker here\n")
    with pytest.raises(DatasetError, match="no line that is a speaker's name"):
        load_shakespeare(str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read as text"):
        load_shakespeare(str(tmp_path))
    with pytest.raises(DatasetError, match="length=0"):
        load_shakespeare(str(tmp_path), length=0)


def write_news(folder, train, test):
    for name, rows in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


NEWS = [
    ("3", "Oil prices", "Oil, oil and more\\oil"),
    ("1", "World's cup", 'A "quoted" cup'),
]


def test_ag_news(tmp_path):
    write_news(tmp_path, NEWS, [("4", "Oil robots", "unseen")])
    examples = load_ag_news(str(tmp_path), length=6, vocabulary=4)
    # By count: oil (4) is 2, cup (2) is 3, all others 1.
    assert examples.x.tolist() == [[2, 1, 2, 2, 1, 1], [1, 3, 1, 1, 3, 0], [2, 1, 1, 0, 0, 0]]
    assert examples.y.tolist() == [2, 0, 3] and examples.split.tolist() == ["train"] * 2 + ["test"]
    data = datasets.ag_news(str(tmp_path), num_clients=2, partition="iid", length=6)
    assert data.x.dtype == np.int32 and data.num_classes == 4


def test_bad_ag_news_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"has none of train\.csv; get it from https://raw"):
        load_ag_news(str(tmp_path))
    write_news(tmp_path, NEWS, [("5", "a", "b")])
    with pytest.raises(DatasetError, match=r"test\.csv: line 1 begins \['5', 'a', 'b'\]"):
        load_ag_news(str(tmp_path))
    write_news(tmp_path, NEWS, [])
    with pytest.raises(DatasetError, match=r"test\.csv is empty"):
        load_ag_news(str(tmp_path))
    with pytest.raises(DatasetError, match="vocabulary=2"):
        load_ag_news(str(tmp_path), vocabulary=2)


def test_sequences_from_npz_may_have_positions_that_do_not_count(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 7, (2, 12, 5))
    y[:, :2] = -1
    np.savez(tmp_path / "text.npz", x=x, y=y, client=np.arange(12) % 3)
    data = datasets.npz(str(tmp_path / "text.npz"))
    assert data.num_classes == 7 and (data.y == y).all() and data.y.dtype == np.int32
    with pytest.raises(DatasetError, match="label -1 at example 0"):
        datasets.npz(str(tmp_path / "text.npz"), task="classification")


def test_sequences_from_npz(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        x = rng.integers(0, 7, (12, 5)).astype(np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.roll(x, -1, 1), client=np.arange(12) % 3)
    data = datasets.npz(str(tmp_path))
    assert data.x.dtype == np.uint16 and data.y.shape == (24, 5) and data.num_classes == 7
    assert (data.mean, data.std) == (0, 1)
    with pytest.raises(
        DatasetError, match=r"label 6 at example \d+ \(client \d\) is outside 0\.\.5"
    ):
        datasets.npz(str(tmp_path), num_classes=6)
