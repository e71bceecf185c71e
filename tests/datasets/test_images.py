"""Image loaders on small files in the real formats, whole and damaged."""

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import PIL.Image
import pytest

from pflalign_jax import datasets
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders import mnist, sources
from pflalign_jax.datasets.loaders.cifar import load_cifar10, load_cifar100
from pflalign_jax.datasets.loaders.idx import read_idx
from pflalign_jax.datasets.loaders.mnist import (
    load_emnist,
    load_fashion_mnist,
    load_mnist,
    load_nist_writers,
)
from pflalign_jax.datasets.loaders.tiny_imagenet import load_tiny_imagenet


def idx_bytes(array, dtype=np.uint8):
    code = {1: 8, 4: 12}[np.dtype(dtype).itemsize]
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.dtype(dtype).newbyteorder(">")).tobytes()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28))


def write_four(directory, train=5, test=2):
    for part, count in (("train", train), ("t10k", test)):
        contents = {
            f"{part}-images-idx3-ubyte.gz": gzip.compress(idx_bytes(images(count))),
            f"{part}-labels-idx1-ubyte": idx_bytes(np.arange(count) % 10),
        }
        for name, content in contents.items():
            (directory / name).write_bytes(content)


@pytest.mark.parametrize("load", [load_mnist, load_fashion_mnist])
def test_mnists(tmp_path, load):
    write_four(tmp_path)
    examples = load(str(tmp_path))
    assert examples.x.shape == (7, 28, 28, 1) and examples.x.dtype == np.uint8
    assert examples.y.tolist() == [0, 1, 2, 3, 4, 0, 1] and examples.y.dtype == np.int32
    assert examples.split.tolist() == ["train"] * 5 + ["test"] * 2
    np.testing.assert_array_equal(examples.x[:5, ..., 0], images(5))
    assert "holds 5 train, 2 test examples; the complete" in examples.notes[0]


@pytest.mark.skipif(
    not mnist.DEBIAN_DIRECTORY.is_dir(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_complete():
    examples = load_fashion_mnist()
    assert examples.notes == ()
    assert np.bincount(examples.y).tolist() == [7000] * 10
    data = datasets.fashion_mnist(fraction=0.25)
    assert len(data.y) == 17_500 and data.num_clients == 20


def test_without_files_and_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    import requests

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("PFLALIGN_DATASETS", str(tmp_path))
    monkeypatch.setattr(requests, "get", no_network)
    with pytest.raises(DatasetError) as error:
        load_mnist()
    for part in ("train-images-idx3-ubyte.gz", str(tmp_path / "mnist"), "ossci-datasets",
                 "no network", "9.9 MB", "dataset.path"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fetch_takes_what_is_there_and_compares_checksums(tmp_path, monkeypatch):
    import requests

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("PFLALIGN_DATASETS", str(tmp_path))
    monkeypatch.setattr(requests, "get", no_network)
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "a.bin").write_bytes(b"hello")
    good = f"md5:{hashlib.md5(b'hello').hexdigest()}"
    for checksum in (good, None):
        file = sources.File("a.bin", "http://nowhere.invalid/a.bin", checksum, 1)
        source = mnist.MNIST._replace(name="thing", files=(file,))
        assert sources.fetch(source) == tmp_path / "thing"
    bad = source._replace(files=(file._replace(checksum="md5:" + "0" * 32),))
    with pytest.raises(DatasetError, match=r"a\.bin is not in .* \(or not whole\)"):
        sources.fetch(bad)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere is not a directory with train-images"):
        load_mnist(str(tmp_path / "nowhere"))
    with pytest.raises(
        DatasetError, match=r"has none of train-images-idx3-ubyte\.gz, .* from http"
    ):
        load_mnist(str(tmp_path))
    write_four(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(4)))
    with pytest.raises(DatasetError, match=r"\(5, 28, 28\) and labels of shape \(4,\)"):
        load_fashion_mnist(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short", idx_bytes(np.zeros((2, 3)))[:-1], "has 17 bytes, .* asks for 18"),
        ("long", idx_bytes(np.zeros((2, 3))) + b"x", "has 19 bytes, .* asks for 18"),
        ("ints", idx_bytes(np.zeros((2, 3)), np.int32)[:-1], "has 35 bytes, .* asks for 36"),
        ("header", bytes([0, 0, 8, 3, 0, 0]), "has 6 bytes"),
        ("floats", bytes([0, 0, 13, 1, 0, 0, 0, 0]), "is not an idx file"),
        ("png", b"\x89PNG\r\n", "is not an idx file"),
        ("empty", b"", "is not an idx file"),
        ("cut.gz", gzip.compress(idx_bytes(np.zeros((9, 9))))[:-9], "cannot be read"),
        ("not.gz", b"hello there", "cannot be read"),
    ],
    ids=[
        "short",
        "long",
        "ints",
        "header",
        "floats",
        "png",
        "empty",
        "cut",
        "not gzip",
    ],
)
def test_damaged_idx(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name}.*{message}"):
        read_idx(tmp_path / name)


def emnist_files(variant="letters"):
    labels = {"train": np.array([1, 26, 2]), "test": np.array([3, 25])}
    for split, values in labels.items():
        pixels = images(len(values)).transpose(0, 2, 1)  # EMNIST stores them transposed
        yield f"emnist-{variant}-{split}-images-idx3-ubyte.gz", gzip.compress(idx_bytes(pixels))
        yield f"emnist-{variant}-{split}-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(values))


def test_emnist_is_upright_and_starts_at_zero(tmp_path):
    archive = tmp_path / "gzip.zip"
    with zipfile.ZipFile(archive, "w") as files:
        for name, content in emnist_files():
            files.writestr(f"gzip/{name}", content)
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in emnist_files():
        (folder / name).write_bytes(content)
    for path in (archive, tmp_path, folder):
        examples = load_emnist(str(path), "letters")
        np.testing.assert_array_equal(examples.x[:3, ..., 0], images(3))
        assert examples.num_classes == 5  # of five labels that occur here
        assert "labels mapped: 1 -> 0, 2 -> 1" in examples.notes[0]
    with pytest.raises(DatasetError, match=r"emnist-digits-train-images.* cannot be read from"):
        load_emnist(str(archive), "digits")
    with pytest.raises(DatasetError, match="variant='letter' is unknown"):
        load_emnist(str(archive), "letter")
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"gzip\.zip .*fetch it again"):
        load_emnist(str(archive), "letters")


def test_nist_writers_joins_qmnists_labels(tmp_path):
    write_four(tmp_path)
    for part, count, writers in (("train", 5, [7, 7, 8, 8, 9]), ("test", 4, [20, 21, 0, 0])):
        table = np.zeros((count, 8), int)
        table[:, 0], table[:, 2] = np.arange(count) % 10, writers
        name = f"qmnist-{part}-labels-idx2-int.gz"
        (tmp_path / name).write_bytes(gzip.compress(idx_bytes(table, np.int32)))
    examples = load_nist_writers(str(tmp_path))
    assert examples.owner.tolist() == [7, 7, 8, 8, 9, 20, 21] and examples.split is None
    assert datasets.nist_writers(str(tmp_path)).client_names.tolist() == ["7", "8", "9", "20", "21"]
    table[:2, 0] = [5, 1]
    (tmp_path / name).write_bytes(gzip.compress(idx_bytes(table, np.int32)))
    with pytest.raises(DatasetError, match=r"class 5 at row 0, MNIST's test labels have 0"):
        load_nist_writers(str(tmp_path))


def cifar_folder(directory, num_labels):
    """Write three records per file, and return the pixels of the first file."""
    rng = np.random.default_rng(0)
    names = {1: [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"],
             2: ["train.bin", "test.bin"]}[num_labels]  # fmt: skip
    first = None
    for name in names:
        pixels = rng.integers(0, 256, (3, 3, 32, 32)).astype(np.uint8)
        labels = np.array([[0, 5], [19, 7], [3, 99]], np.uint8)[:, 2 - num_labels:] % (
            10 if num_labels == 1 else 100)  # fmt: skip
        (directory / name).write_bytes(
            np.concatenate([labels, pixels.reshape(3, -1)], axis=1).tobytes()
        )
        first = pixels if first is None else first
    return first


@pytest.mark.parametrize(
    ("load", "folder", "num_labels", "archive"),
    [
        (load_cifar10, "cifar-10-batches-bin", 1, "cifar-10-binary.tar.gz"),
        (load_cifar100, "cifar-100-binary", 2, "cifar-100-binary.tar.gz"),
    ],
)
def test_cifar(tmp_path, load, folder, num_labels, archive):
    (tmp_path / folder).mkdir()
    first = cifar_folder(tmp_path / folder, num_labels)
    expected = load(str(tmp_path / folder))
    np.testing.assert_array_equal(expected.x[:3], first.transpose(0, 2, 3, 1))
    assert expected.y[:3].tolist() == ([5, 7, 9] if num_labels == 1 else [5, 7, 99])
    assert expected.split.tolist().count("test") == 3
    other = tmp_path / "other"
    other.mkdir()
    with tarfile.open(other / archive, "w:gz") as files:
        files.add(tmp_path / folder, folder)
    for path in (tmp_path, other, other / archive):
        np.testing.assert_array_equal(load(str(path)).x, expected.x)
    (other / archive).write_bytes((other / archive).read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"cannot be read from .*fetch it again"):
        load(str(other))
    test_file = tmp_path / folder / ("test_batch.bin" if num_labels == 1 else "test.bin")
    test_file.write_bytes(test_file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="not a multiple of 307"):
        load(str(tmp_path))


def test_cifars_pickles_are_never_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DatasetError, match=r"pickled files, .* never opened.*binary version"):
        load_cifar10(str(tmp_path))


def test_cifar100_by_superclass(tmp_path):
    cifar_folder(tmp_path, 2)
    examples = load_cifar100(str(tmp_path))
    assert examples.owner[:3].tolist() == ["aquatic_mammals", "vehicles_2", "food_containers"]
    coarse = load_cifar100(str(tmp_path), "coarse")
    assert coarse.num_classes == 20 and coarse.owner is None and coarse.y[:3].tolist() == [0, 19, 3]
    with pytest.raises(DatasetError, match="labels='medium'"):
        load_cifar100(str(tmp_path), "medium")


@pytest.fixture
def tiny(tmp_path):
    """A folder like tiny-imagenet-200 with two classes; one image is grey."""
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    rng = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(("n01", "n02")):
        (tmp_path / "train" / name / "images").mkdir(parents=True)
        (tmp_path / "val" / "images").mkdir(parents=True, exist_ok=True)
        for i in range(2):
            shape = (64, 64) if (label, i) == (0, 0) else (64, 64, 3)
            image = PIL.Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
            image.save(tmp_path / "train" / name / "images" / f"{name}_{i}.JPEG")
        image.save(tmp_path / "val" / "images" / f"val_{label}.JPEG")
        rows.append(f"val_{label}.JPEG\t{name}\t0\t0\t62\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    return tmp_path


def test_tiny_imagenet(tiny):
    examples = load_tiny_imagenet(str(tiny))
    assert examples.x.shape == (6, 64, 64, 3) and examples.x.dtype == np.uint8
    assert examples.y.tolist() == [0, 0, 1, 1, 0, 1]
    assert examples.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert (examples.x[0, ..., 0] == examples.x[0, ..., 1]).all()  # grey became RGB


def test_damaged_tiny_imagenet(tiny):
    image = tiny / "train" / "n01" / "images" / "n01_1.JPEG"
    content = image.read_bytes()
    image.write_bytes(content[:200])
    with pytest.raises(DatasetError, match=r"n01_1\.JPEG cannot be read as an image"):
        load_tiny_imagenet(str(tiny))
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(buffer, "JPEG")
    image.write_bytes(buffer.getvalue())
    with pytest.raises(DatasetError, match=r"n01_1\.JPEG has shape \(32, 32, 3\)"):
        load_tiny_imagenet(str(tiny))
    image.write_bytes(content)
    (tiny / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn07\t0\t0\t62\t62\n")
    with pytest.raises(DatasetError, match="class 'n07'"):
        load_tiny_imagenet(str(tiny))
    with pytest.raises(DatasetError, match=r"wnids\.txt cannot be read .*tiny-imagenet-200\.zip"):
        load_tiny_imagenet(str(tiny / "nowhere"))


def test_downloads_are_whole_and_checked(tmp_path, monkeypatch):
    """From a server of our own: a good file, one with another checksum, one that is missing."""
    served, kept = tmp_path / "served", tmp_path / "kept"
    served.mkdir()
    (served / "a.bin").write_bytes(b"hello")
    monkeypatch.setenv("PFLALIGN_DATASETS", str(kept))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"

        def source(name, checksum):
            file = sources.File(name, f"{url}/{name}", checksum, 1)
            return mnist.MNIST._replace(name="thing", files=(file,))

        digest = hashlib.sha256(b"hello").hexdigest()
        folder = sources.fetch(source("a.bin", f"sha256:{digest}"))
        assert (folder / "a.bin").read_bytes() == b"hello"
        (served / "a.bin").write_bytes(b"hell")  # truncated on its way
        (folder / "a.bin").unlink()
        with pytest.raises(DatasetError, match=r"downloading it from http://127.*hash"):
            sources.fetch(source("a.bin", f"sha256:{digest}"))
        assert list(folder.iterdir()) == []
        with pytest.raises(DatasetError, match=r"b\.bin is not in .*404"):
            sources.fetch(source("b.bin", None))
        server.shutdown()
