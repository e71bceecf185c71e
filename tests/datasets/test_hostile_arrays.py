"""Arrays whose headers lie, and values that no type of ours can hold: refused, never changed."""

import io
import resource
import zipfile

import numpy as np
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError, Examples, partition_examples
from pflalign_jax.datasets.array_files import ArrayFileError, open_npz, read_npy

COUNT = 12
CLIENT = np.arange(COUNT) % 3


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


def header(*shape):
    """Return an npy that declares a shape and has three bytes."""
    file = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue() + b"abc"


def archive(path, **members):
    contents = {"x": np.zeros((COUNT, 2), np.float32), "y": CLIENT, "client": CLIENT, **members}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def set_in_archive(path, local, central, value):
    """Set two bytes of the headers of every member, which stand there twice."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset : at + offset + 2] = value.to_bytes(2, "little")
            at = content.find(mark, at + 4)
    path.write_bytes(content)


def text(length):
    return f"which takes {4 * length} bytes; the file has at most 3: it is truncated or damaged"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x": header(6 * 10**12)}, text(6 * 10**12)),
        ({"x": header(10**9, 10)}, text(10**10)),
        ({"x": header(-3, 10)}, r"x has shape \(-3, 10\)"),
        ({"x": np.float32(3)}, r"x has shape \(\); it must be"),
        ({"x": np.zeros((COUNT, 0), np.float32)}, r"x has shape \(12, 0\); it must be"),
        ({"client": np.array(["a", "b\udc80", "c"])[CLIENT]}, r"client has the text 'b\\udc80'"),
        ({"client": np.array(["a", "b\n", "\x1b[31m"])[CLIENT]}, r"client has the text 'b\\n'"),
        ({"client": np.array([b"a", b"\xe8", b"\xe9"])[CLIENT]}, r"text b'\\xe8', which is not U"),
        ({"x": np.full((COUNT, 2), 2**40 + 7), "y": np.ones((COUNT, 2), int)}, "1099511627783"),
        ({"x": np.full((COUNT, 2), -1), "y": np.ones((COUNT, 2), int)}, r"\(client 0\) has -1"),
    ],
)  # fmt: skip
def test_contents(tmp_path, members, message):
    with pytest.raises(DatasetError, match=f"a.npz.*{message}"):
        datasets.npz(str(archive(tmp_path / "a.npz", **members)))


@pytest.mark.parametrize(
    ("offsets", "value", "message"),
    [((6, 8), 1, "is encrypted"), ((8, 10), 77, "is packed by an unknown method, 77")],
)
def test_archives_that_numpy_does_not_write(tmp_path, offsets, value, message):
    set_in_archive(archive(tmp_path / "a.npz"), *offsets, value)
    with pytest.raises(DatasetError, match=f"a.npz cannot be read as npz .*x {message}"):
        datasets.npz(str(tmp_path / "a.npz"))


def test_an_archive_that_lies_about_its_size(tmp_path):
    path = archive(tmp_path / "a.npz", x=header(10**9, 10))
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.find(mark)
        content[at + offset : at + offset + 4] = b"\xf0\xff\xff\xff"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_npz(path) as file, pytest.raises(ArrayFileError, match="at most"):
        _ = file["x"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # in kB


def test_npy_files(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(header(10**9, 10))
    for mapped in (False, True):
        with pytest.raises(ArrayFileError, match=text(10**10)):
            read_npy(path, mapped)
    path.rename(tmp_path / "x.npz")
    with pytest.raises(DatasetError, match="cannot be read as npz"):
        datasets.npz(str(tmp_path / "x.npz"))


def test_big_endian_integers_are_read(tmp_path):
    x = np.arange(2 * COUNT, dtype=">i4").reshape(COUNT, 2)
    path = archive(tmp_path / "a.npz", x=x, y=CLIENT.astype(">i8"), client=CLIENT.astype(">i2"))
    data = datasets.npz(str(path))
    assert data.x.dtype == np.int32 and data.x.tolist() == x.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"y": CLIENT * 1e300, "num_classes": 0, "task": "regression"}, r"1e\+300 at example 1"),
        ({"y": np.full((COUNT, 2), 2**40), "num_classes": 0, "task": "multilabel"}, "int32 cannot"),
        ({"y": CLIENT + 2**40, "num_classes": 2**41}, "y has 1099511627776 at example 0"),
        ({"owner": [float("nan"), "a", "b"] * 4}, "no client at example 0 but 'nan'"),
    ],
)
def test_values_that_would_become_others(fields, message):
    examples = Examples(
        "mine", np.zeros((COUNT, 2), np.float32), CLIENT, 3, owner=CLIENT, source="here"
    )
    with pytest.raises(DatasetError, match=f"here.*{message}"):
        partition_examples(examples._replace(**fields))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_indices": np.zeros(4)}, "train has float64"),
        ({"train_offsets": np.array([0, 9, 4, 2])}, "offsets of train do not divide"),
        ({"client_names": np.arange(3)}, "client_names is int64"),
        ({"num_examples": np.array("many")}, "cannot be read"),
        ({"num_examples": None}, "KeyError: 'num_examples'"),
        ({"test_indices": header(10**12)}, "takes 4000000000000 bytes"),
    ],
)
def test_partition_files(tmp_path, arrays, message):
    examples = Examples("mine", np.zeros((COUNT, 2), np.float32), CLIENT, 3, owner=CLIENT)
    path = tmp_path / "partition.npz"
    datasets.save_partition(path, partition_examples(examples))
    with open_npz(path) as file:
        changed = {k: v for k, v in {**file, **arrays}.items() if v is not None}
    with zipfile.ZipFile(path, "w") as written:
        for name, content in changed.items():
            written.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    with pytest.raises(DatasetError, match=rf"partition\.npz .*{message}"):
        partition_examples(examples, partition_file=str(path))


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (1e300,), "std": (1.0,)},
        {"mean": (0.0,), "std": (1e300,)},
        {"mean": (0.0,), "std": (1e-320,)},
        {"seed": 2**32},  # keys of random draws have 32 bits: it would draw as 0 does
    ],
)
def test_options_that_would_become_others(options):
    examples = Examples("mine", np.zeros((COUNT, 2), np.float32), CLIENT, 3, owner=CLIENT)
    with pytest.raises(DatasetError, match=r"=\S+ is not allowed"):
        partition_examples(examples, **options)
