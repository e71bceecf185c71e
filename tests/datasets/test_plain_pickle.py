"""Pickles of arrays are read like `pickle` does, and those that would run code do not run it."""

import io
import os
import pathlib
import pickle

import numpy as np
import pytest

from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.plain_pickle import load_plain, load_plain_file


def loaded(content):
    return load_plain(content, "some.pkl")


VALUES = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "strings": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "empty": np.zeros((0, 3)),
    "objects": np.array([[1, 2], ["x", None]], object),
    "scalar": np.float64(0.1),
    "plain": {"a": [1, 2.5, True, None], "b": ("c", b"d")},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_are_read_in_every_protocol(name, protocol):
    value = VALUES[name]
    content = pickle.dumps({"value": value}, protocol)
    found = loaded(content)["value"]
    if not isinstance(value, np.ndarray):
        assert found == value
        return
    assert found.dtype == pickle.loads(content)["value"].dtype  # bytes in the machine's order
    np.testing.assert_array_equal(found, value)


def test_names_of_numpy_1_are_read():
    content = pickle.dumps(np.arange(3), 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in content
    assert loaded(content).tolist() == [0, 1, 2]


class Runs:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: np.array([v, 1], object)])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, wrap, protocol):
    made = tmp_path / "made"
    value = {"x": wrap(Runs(os.mkdir, str(made)))}
    content = pickle.dumps(value, protocol)
    with pytest.raises(DatasetError, match=r"some\.pkl is a pickle that uses \w+\.mkdir; only"):
        loaded(content)
    assert not made.exists()
    pickle.loads(content)  # it is a pickle that works
    assert made.exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, np.load, np.frombuffer, pathlib.Path, np.array, bytearray]
)
def test_no_other_name_is_allowed(function):
    with pytest.raises(DatasetError, match=rf"uses [\w.]+\.{function.__name__}; only arrays"):
        loaded(pickle.dumps(Runs(function, "1")))


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DatasetError, match=r"uses evil_module\.run"):
        loaded(b"cevil_module\nrun\n.")


def array_pickle(dtype_state, content, shape=(2,), code="O8"):
    """Return the pickle of an array with a state that NumPy would not write."""
    begin = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'" + code.encode() + b"'\nI00\nI01\ntR" + dump(dtype_state) + b"b"
    return begin + b"(I1\n" + dump(shape) + dtype + b"I00\n" + dump(content) + b"tb."


def dump(value):
    return pickle.dumps(value, 0)[:-1].split(b"\np", 1)[0] if value is None else plain_dump(value)


def plain_dump(value):
    """Return protocol 0 without memo, whose numbers would clash in a pickle put together."""
    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, 0)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()[:-1]


OBJECT_STATE = (3, "|", None, None, None, -1, -1, 63)


def test_bytes_are_never_taken_for_objects():
    good = array_pickle(OBJECT_STATE, ["a", 1])
    assert loaded(good).tolist() == ["a", 1]
    # Flags without "is a list": with them NumPy would take these bytes for pointers.
    no_flags = (*OBJECT_STATE[:-1], 0)
    with pytest.raises(DatasetError, match="objects must come as a list"):
        loaded(array_pickle(no_flags, b"\x41" * 16))
    with pytest.raises(DatasetError, match="1 objects do not fill"):
        loaded(array_pickle(OBJECT_STATE, ["a"]))
    fields = (3, "|", None, ("a",), {"a": 1}, 8, 1, 0)
    with pytest.raises(DatasetError, match="arrays of records"):
        loaded(array_pickle(fields, b"\x41" * 16, code="V8"))
    with pytest.raises(DatasetError, match="'V8' is not allowed"):
        loaded(array_pickle((3, "|", None, None, None, 8, 1, 0), b"\x41" * 16, code="V8"))
    with pytest.raises(DatasetError, match="truncated or damaged"):
        loaded(array_pickle((3, "<", None, None, None, -1, -1, 0), b"\x41" * 15, code="f8"))


def test_damaged_pickles_are_named(tmp_path):
    content = pickle.dumps({"x": np.arange(100.0), "y": ["label"] * 3})
    for end in range(0, len(content) - 1, 7):
        with pytest.raises(DatasetError, match=r"some\.pkl cannot be read as a pickle"):
            loaded(content[:end])
    with pytest.raises(DatasetError, match="place 4000000000 after 1 steps"):
        loaded(b"]r" + (4_000_000_000).to_bytes(4, "little") + b".")  # 32 GB for a memo
    rng = np.random.default_rng(0)
    for _ in range(300):  # either still plain, or refused: never another error
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            loaded(bytes(damaged))
        except DatasetError:
            continue
    with pytest.raises(DatasetError, match=r"nothing\.pkl cannot be read"):
        load_plain_file(tmp_path / "nothing.pkl")
