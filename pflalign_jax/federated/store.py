"""Where the states of clients live between rounds when they do not stay on devices.

A store holds one state per client as rows of arrays ``[K, ...]``, in host memory or in
memory-mapped files. A row that was never written reads as the algorithm's first state, so opening
a store for a million clients costs nothing but (sparse) files.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class StoreError(Exception):
    """A store that cannot be used; the message names the directory and says what to do."""


class ClientStore(NamedTuple):
    """States of K clients outside of devices.

    Attributes:
      read: ``positions [C] -> state`` with leaves ``[C, ...]``, NumPy copies.
      write: ``(positions [C], state, round) -> None``: all rows or, after a crash, none.
      last_round: ``() -> int``, the round that was written last; 0 for a new store.
    """

    read: Callable[[np.ndarray], Any]
    write: Callable[[np.ndarray, Any, int], None]
    last_round: Callable[[], int]


def host_store(first: Any, num_clients: int) -> ClientStore:
    """Return a store in host memory.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
    """
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
    arrays = [np.zeros((num_clients, *leaf.shape), leaf.dtype) for leaf in leaves]
    written = np.zeros(num_clients, bool)
    last = [0]

    def write(positions, state, round_index):
        _apply(arrays, written, positions, jax.tree.leaves(state))
        last[0] = round_index

    return ClientStore(
        lambda positions: treedef.unflatten(_read(arrays, written, leaves, positions)),
        write,
        lambda: last[0],
    )


def disk_store(first: Any, num_clients: int, directory: str | os.PathLike) -> ClientStore:
    """Return a store in memory-mapped files, safe against crashes at round granularity.

    A round's rows go to a journal, which is renamed into place when it is whole and on disk; only
    then are they copied into the files. A store opened after a crash first repeats a whole journal
    and drops an unfinished one, so it always holds the state after a whole round.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
      directory: made if it is missing; a store of the same shapes in it is continued.

    Raises:
      StoreError: if the directory cannot be written or holds a store of other shapes.
    """
    directory = pathlib.Path(directory)
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
    layout = {
        "clients": num_clients,
        "leaves": [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves],
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        about = directory / "layout.json"
        if about.exists():
            found = json.loads(about.read_text())
            if found != layout:
                raise StoreError(
                    f"{directory} holds client states of another run: {found}, not {layout}; "
                    "choose another directory or delete it"
                )
        arrays = [
            _open(directory / f"leaf{i}.bin", (num_clients, *leaf.shape), leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        written = _open(directory / "written.bin", (num_clients,), np.dtype(bool))
        done = _open(directory / "round.bin", (1,), np.dtype(np.int64))
        about.write_text(json.dumps(layout))
    except OSError as error:
        raise StoreError(
            f"{directory} cannot hold client states: {error}; choose another directory or make room"
        ) from error
    journal, unfinished = directory / "journal", directory / "journal.partial"

    def replay():
        positions = np.load(journal / "positions.npy")
        rows = [np.load(journal / f"leaf{i}.npy") for i in range(len(arrays))]
        _apply(
            arrays, written, positions, [_typed(r, a) for r, a in zip(rows, arrays, strict=True)]
        )
        done[0] = int(np.load(journal / "round.npy"))
        for array in (*arrays, written, done):
            array.flush()
        shutil.rmtree(journal)

    def write(positions, state, round_index):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        rows = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(state)]
        named = {f"leaf{i}": row.view(np.uint8) for i, row in enumerate(rows)}
        for name, array in {**named, "positions": positions, "round": round_index}.items():
            with (unfinished / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        unfinished.rename(journal)
        _sync_directory(directory)
        replay()

    if journal.exists():
        replay()
    shutil.rmtree(unfinished, ignore_errors=True)
    return ClientStore(
        lambda positions: treedef.unflatten(_read(arrays, written, leaves, positions)),
        write,
        lambda: int(done[0]),
    )


def _read(arrays, written, first, positions):
    """Return copies of rows; the first state where a row was never written."""
    fresh = ~written[positions]
    rows = []
    for array, leaf in zip(arrays, first, strict=True):
        row = np.array(array[positions])
        row[fresh] = leaf
        rows.append(row)
    return rows


def _apply(arrays, written, positions, rows: Sequence[np.ndarray]):
    for array, row in zip(arrays, rows, strict=True):
        array[positions] = row
    written[positions] = True


def _typed(raw, array):
    """Return bytes read from a journal as rows of ``array``'s dtype (bfloat16 has no npy name)."""
    return raw.reshape(-1).view(array.dtype).reshape(-1, *array.shape[1:])


def _open(path, shape, dtype):
    """Return a memory-mapped array, zeros (a sparse file) if it is new."""
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    if path.stat().st_size == 0:
        return np.zeros(shape, dtype).view(_Unmapped)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


class _Unmapped(np.ndarray):
    """An array without bytes, which cannot be mapped and has nothing to flush."""

    def flush(self):
        """Do nothing."""


def _sync_directory(directory):
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
