"""Where the states of clients live between rounds when they do not stay on devices.

A store holds one state per client, in host memory or in files. A client that was never written
reads as the algorithm's first state, so opening a store for a million clients costs next to
nothing.
"""

import contextlib
import json
import math
import mmap
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from pflalign_jax.errors import UserError


class StoreError(UserError):
    """A store that cannot be used; the message names the directory and says what to do."""


class ClientStore(NamedTuple):
    """States of K clients outside of devices.

    Positions are ints of any shape ``S``; -1 stands for no client.

    Attributes:
      read: ``positions [S] -> state`` with leaves ``[S, ...]``, NumPy copies; the first state
        where there is no client.
      write: ``(positions [S], state, round) -> None``: all clients or, after a crash, none.
      last_round: ``() -> int``, the round that was written last; 0 for a new store.
      written: ``() -> [K] bool``, who was ever written; others read as the first state.
      hold: ``rounds -> None``: a store in files can be opened again after these rounds, each the
        last one or held before; others are let go. In memory nothing is held.
    """

    read: Callable[[np.ndarray], Any]
    write: Callable[[np.ndarray, Any, int], None]
    last_round: Callable[[], int]
    written: Callable[[], np.ndarray]
    hold: Callable[[Iterable[int]], None]


def host_store(first: Any, num_clients: int) -> ClientStore:
    """Return a store in host memory.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
    """
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
    arrays = [_anonymous((num_clients, *leaf.shape), leaf.dtype) for leaf in leaves]
    written = np.zeros(num_clients, bool)
    last = [0]

    def read(positions):
        rows = _rows(leaves, (positions >= 0) & written[positions])
        for k, where in _there(positions):
            if written[k]:
                for row, array in zip(rows, arrays, strict=True):
                    row[where] = array[k]
        return treedef.unflatten(rows)

    def write(positions, state, round_index):
        rows = treedef.flatten_up_to(state)
        for k, where in _there(positions):
            for row, array in zip(rows, arrays, strict=True):
                array[k] = row[where]
            written[k] = True
        last[0] = round_index

    return ClientStore(read, write, lambda: last[0], written.copy, lambda rounds: None)


def disk_store(
    first: Any,
    num_clients: int,
    directory: str | os.PathLike,
    until: int | None = None,
    held: Iterable[int] = (),
) -> ClientStore:
    """Return a store in files, safe against crashes at round granularity.

    ``states.bin`` is a list of slots, each of one client's whole state. A round's states go to
    free slots; when they are on the disk, one record in ``rounds.log`` says who is where now, and
    the slots held before become free. A store opened after a crash ignores a record that is not
    whole, so it always holds the state after a whole round. The file has at most K + 2C slots,
    and none for clients that never took part.

    The slots of a round that is held, up to K further ones, are not written over, so that the store
    can be opened as it was then. The first write drops the records of later rounds.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
      directory: made if it is missing; a store of the same shapes in it is continued.
      until: go back to after this round, which must have been held; None: the last one.
      held: further rounds up to ``until`` that were held and still are to be.

    Raises:
      StoreError: if the directory cannot be written, or holds other shapes or not these rounds; in
        ``read`` and ``write``, for what the operating system refuses.
    """
    directory = pathlib.Path(directory)
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
    slot_bytes = sum(leaf.nbytes for leaf in leaves)
    slot_of = np.full(num_clients, -1)
    with _explained(
        f"{directory} cannot hold client states; choose another directory or make room"
    ):
        directory.mkdir(parents=True, exist_ok=True)
        _check_layout(directory, leaves, num_clients)
        states, log = (_File(directory / name) for name in ("states.bin", "rounds.log"))
        _sync_directory(directory)
    wanted = {r for r in (*held, until) if r is not None}
    last, log_end, tables = _replay(log.fd, slot_of, until, wanted)
    if missing := sorted(wanted - {0, *tables}):
        raise StoreError(
            f"{directory} does not hold client states after round {missing[0]}, only up to round "
            f"{last}; they were deleted or belong to another run"
        )
    tables = {r: tables.get(r, np.full(num_clients, -1)) for r in wanted}
    taken = np.concatenate([slot_of, *tables.values()])
    used = int(taken.max(initial=-1)) + 1
    free = sorted(set(range(used)) - set(taken.tolist()), reverse=True)
    cut = False

    def read(positions):
        rows = _rows(leaves, (positions >= 0) & (slot_of[positions] >= 0))
        with _explained(f"{directory}: client states cannot be read"):
            for k, where in _there(positions):
                if slot_of[k] >= 0:
                    _transfer(os.preadv, states.fd, rows, where, int(slot_of[k]) * slot_bytes)
        return treedef.unflatten(rows)

    def write(positions, state, round_index):
        nonlocal last, log_end, used, cut
        rows = [np.ascontiguousarray(row) for row in treedef.flatten_up_to(state)]
        there = _there(positions)
        while len(free) < len(there):
            free.append(used)
            used += 1
        slots = free[-len(there) :] if there else []
        clients = [k for k, _ in there]
        record = np.array([round_index, len(there), *clients, *slots], np.int64).tobytes()
        record += np.int64(zlib.crc32(record)).tobytes()
        with _explained(
            f"{directory} cannot take the client states of round {round_index}, it holds those of "
            f"round {last}; make room"
        ):
            if not cut and os.fstat(log.fd).st_size > log_end:
                os.ftruncate(log.fd, log_end)
                _to_disk(log.fd)
            cut = True
            for (_, where), slot in zip(there, slots, strict=True):
                _transfer(os.pwritev, states.fd, rows, where, slot * slot_bytes)
            _to_disk(states.fd)
            os.pwrite(log.fd, record, log_end)
            _to_disk(log.fd)
        before = slot_of[clients]
        gone = (before >= 0) & ~_among(before, [table[clients] for table in tables.values()])
        del free[len(free) - len(slots) :]
        free.extend(before[gone].tolist())
        slot_of[clients] = slots
        last, log_end = round_index, log_end + len(record)

    def hold(rounds):
        rounds = set(rounds)
        if last in rounds:
            tables[last] = slot_of.copy()
        if unknown := sorted(rounds - set(tables)):
            raise StoreError(f"{directory} is after round {last} and no longer holds {unknown}")
        for r in sorted(set(tables) - rounds):
            table = tables.pop(r)
            gone = (table >= 0) & ~_among(table, [slot_of, *tables.values()])
            free.extend(table[gone].tolist())

    return ClientStore(read, write, lambda: last, lambda: slot_of >= 0, hold)


def _among(slots, tables):
    """Tell which slots some table has for the same client."""
    return np.any([table == slots for table in tables], axis=0) if tables else slots < -1


_to_disk = getattr(os, "fdatasync", os.fsync)


@contextlib.contextmanager
def _explained(message):
    """Turn an error of the operating system into a `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{message} ({error})") from error


class _File:
    """A file descriptor that is closed when nobody needs it any more."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


def _sync_directory(directory):
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_layout(directory, leaves, num_clients):
    """Write what a new store holds, or refuse another's."""
    layout = {
        "clients": num_clients,
        "leaves": [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves],
    }
    about = directory / "layout.json"
    if about.exists():
        found = json.loads(about.read_text())
        if found != layout:
            raise StoreError(
                f"{directory} holds client states of another run: {found}, not {layout}; "
                "choose another directory or delete it"
            )
    temporary = about.with_suffix(".partial")
    temporary.write_text(json.dumps(layout))
    temporary.replace(about)


def _replay(log, slot_of, until, wanted):
    """Read whole records up to round ``until`` into ``slot_of``.

    Returns the last round, where the next one goes, and what ``slot_of`` was after ``wanted`` ones.
    """
    tables = {}
    content = np.frombuffer(os.pread(log, os.fstat(log).st_size // 8 * 8, 0), np.int64)
    last, start = 0, 0
    while start + 2 < len(content):
        round_index, count = content[start : start + 2].tolist()
        if until is not None and round_index > until:
            break
        end = start + 2 + 2 * count
        if (
            count < 0
            or end >= len(content)
            or content[end] != zlib.crc32(content[start:end].tobytes())
        ):
            break
        clients, slots = content[start + 2 : end].reshape(2, count)
        slot_of[clients] = slots
        last, start = round_index, end + 1
        if last in wanted:
            tables[last] = slot_of.copy()
    return last, 8 * start, tables


def _transfer(call, file, rows, where, offset):
    """Read or write one client's rows, one after the other from ``offset`` on."""
    parts = [row[(*where, ...)].reshape(-1).view(np.uint8) for row in rows]
    parts = [part for part in parts if len(part)]
    wanted = sum(len(part) for part in parts)
    done = sum(
        call(file, parts[i : i + 512], offset + sum(len(part) for part in parts[:i]))
        for i in range(0, len(parts), 512)
    )
    if done != wanted:
        raise OSError(f"only {done} of {wanted} bytes of a client's state could be moved")


def _there(positions):
    """Return ``[(client, index into the table)]`` of the clients that a table of positions has."""
    return [(int(k), where) for where, k in np.ndenumerate(positions) if k >= 0]


def _rows(first, known):
    """Return rows for a table of positions, to be filled where ``known``, else first states."""
    rows = [np.empty((*known.shape, *leaf.shape), leaf.dtype) for leaf in first]
    for where in zip(*np.nonzero(~known), strict=True):
        for row, leaf in zip(rows, first, strict=True):
            row[where] = leaf
    return rows


def _anonymous(shape, dtype):
    """Return zeros that take memory row by row.

    NumPy's own would ask for huge pages, which the first write of every small row pays for.
    """
    size = math.prod(shape)
    if size == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype, size).reshape(shape)
