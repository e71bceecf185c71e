"""Features are told apart by all of their bytes; those of a mapped file are read once."""

import os
import time

import numpy as np
import pytest

from pflalign_jax.datasets import checksum
from pflalign_jax.datasets.checksum import describe_features, features_checksum


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
def test_every_byte_counts(dtype, monkeypatch):
    x = np.random.default_rng(0).integers(0, 100, (18_000, 3)).astype(dtype)
    wanted = features_checksum(x)
    monkeypatch.setattr(checksum, "BLOCK", 1000)  # bytes at a time change nothing
    assert features_checksum(x) == features_checksum(np.asfortranarray(x)) == wanted
    for row in (0, 1, 9_001, 17_999):
        changed = x.copy()
        changed[row, 1] += 1
        assert features_checksum(changed) != wanted
    assert features_checksum(x[:0]) == 0


def test_a_mapped_file_is_read_again_only_if_it_changed(tmp_path, monkeypatch):
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    first = describe_features(mapped, {})
    assert first["features_crc32_all"] == features_checksum(x)
    with monkeypatch.context() as patch:
        patch.delattr(checksum, "features_checksum")  # not called
        assert describe_features(mapped, first) == first
    np.save(tmp_path / "x.npy", x + 1)
    os.utime(tmp_path / "x.npy", ns=(0, 0))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert describe_features(mapped, first)["features_crc32_all"] == features_checksum(x + 1)
    in_memory = describe_features(x, first)
    assert in_memory["features_file"] is None


@pytest.mark.slow
def test_what_it_costs(tmp_path):
    """The figures of docs/resume.md."""
    np.save(tmp_path / "x.npy", np.zeros((2**20, 256), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for what, known in (("read", {}), ("known", describe_features(mapped, {}))):
        clock = time.perf_counter()
        describe_features(mapped, known)
        print(f"1 GiB of features, {what}: {time.perf_counter() - clock:.3f} s")
