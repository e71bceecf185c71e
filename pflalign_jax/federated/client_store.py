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
from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np

from pflalign_jax.errors import UserError


class StoreError(UserError):
    """A store that cannot be used; the message names the directory and says what to do."""


class ClientStore(Protocol):
    """States of K clients outside of devices.

    Positions are ints of any shape ``S``; -1 stands for no client.
    """

    def read(self, positions: np.ndarray) -> Any:
        """Return states ``[S, ...]``, NumPy copies; the first state where there is no client."""

    def write(self, positions: np.ndarray, state: Any, round_index: int) -> None:
        """Write states ``[S, ...]`` after a round: of all clients or, after a crash, of none."""

    def last_round(self) -> int:
        """Return the round that was written last; 0 for a new store."""

    def written(self) -> np.ndarray:
        """Return ``[K]`` bool, who was ever written; others read as the first state."""

    def hold(self, rounds: Iterable[int]) -> None:
        """Keep the states of these rounds on disk for reopening; delete other past ones.

        Each is the last round or one that is held already. A store in memory holds nothing.
        """


class HostStore:
    """A `ClientStore` in host memory.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
    """

    def __init__(self, first: Any, num_clients: int):
        self._first, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
        self._treedef: Any = treedef
        self._arrays = [_anonymous((num_clients, *leaf.shape), leaf.dtype) for leaf in self._first]
        self._written = np.zeros(num_clients, bool)
        self._last_round = 0

    def read(self, positions: np.ndarray) -> Any:
        """See `ClientStore`."""
        rows = _first_rows(self._first, (positions >= 0) & self._written[positions])
        for k, where in _clients_of(positions):
            if self._written[k]:
                for row, array in zip(rows, self._arrays, strict=True):
                    row[where] = array[k]
        return self._treedef.unflatten(rows)

    def write(self, positions: np.ndarray, state: Any, round_index: int) -> None:
        """See `ClientStore`."""
        rows = self._treedef.flatten_up_to(state)
        for k, where in _clients_of(positions):
            for row, array in zip(rows, self._arrays, strict=True):
                array[k] = row[where]
            self._written[k] = True
        self._last_round = round_index

    def last_round(self) -> int:
        """See `ClientStore`."""
        return self._last_round

    def written(self) -> np.ndarray:
        """See `ClientStore`."""
        return self._written.copy()

    def hold(self, rounds: Iterable[int]) -> None:
        """Do nothing: states in memory are of the last round only."""


class DiskStore:
    """A `ClientStore` in files, safe against crashes at round granularity.

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

    def __init__(
        self,
        first: Any,
        num_clients: int,
        directory: str | os.PathLike,
        until: int | None = None,
        held: Iterable[int] = (),
    ):
        self._directory = directory = pathlib.Path(directory)
        self._first, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
        self._treedef: Any = treedef
        self._slot_bytes = sum(leaf.nbytes for leaf in self._first)
        # [K] the slot that holds each client's state; -1: it was never written.
        self._slot_of = np.full(num_clients, -1)
        with _explained(
            f"{directory} cannot hold client states; choose another directory or make room"
        ):
            directory.mkdir(parents=True, exist_ok=True)
            _check_layout(directory, self._first, num_clients)
            self._states, self._log = (_File(directory / n) for n in ("states.bin", "rounds.log"))
            _sync_directory(directory)
        wanted = {r for r in (*held, until) if r is not None}
        self._last_round, self._log_end, tables = _replay(
            self._log.fd, self._slot_of, until, wanted
        )
        if missing := sorted(wanted - {0, *tables}):
            raise StoreError(
                f"{directory} does not hold client states after round {missing[0]}, only up to "
                f"round {self._last_round}; they were deleted or belong to another run"
            )
        # Of every round that is held, what _slot_of was after it. Nobody was written by round 0.
        self._held = {r: tables.get(r, np.full(num_clients, -1)) for r in wanted}
        taken = np.concatenate([self._slot_of, *self._held.values()])
        self._num_slots = int(taken.max(initial=-1)) + 1
        self._free = sorted(set(range(self._num_slots)) - set(taken.tolist()), reverse=True)
        # Records of later rounds go with the first write, not when the store is only read.
        self._later_records_dropped = False

    def read(self, positions: np.ndarray) -> Any:
        """See `ClientStore`."""
        rows = _first_rows(self._first, (positions >= 0) & (self._slot_of[positions] >= 0))
        with _explained(f"{self._directory}: client states cannot be read"):
            for k, where in _clients_of(positions):
                if self._slot_of[k] >= 0:
                    offset = int(self._slot_of[k]) * self._slot_bytes
                    _transfer(os.preadv, self._states.fd, rows, where, offset)
        return self._treedef.unflatten(rows)

    def write(self, positions: np.ndarray, state: Any, round_index: int) -> None:
        """See `ClientStore`."""
        rows = [np.ascontiguousarray(row) for row in self._treedef.flatten_up_to(state)]
        members = _clients_of(positions)
        while len(self._free) < len(members):
            self._free.append(self._num_slots)
            self._num_slots += 1
        slots = self._free[-len(members) :] if members else []
        clients = [k for k, _ in members]
        record = np.array([round_index, len(members), *clients, *slots], np.int64).tobytes()
        record += np.int64(zlib.crc32(record)).tobytes()
        with _explained(
            f"{self._directory} cannot take the client states of round {round_index}, it holds "
            f"those of round {self._last_round}; make room"
        ):
            self._drop_later_records()
            for (_, where), slot in zip(members, slots, strict=True):
                _transfer(os.pwritev, self._states.fd, rows, where, slot * self._slot_bytes)
            # The record must not reach the disk before the states that it speaks of.
            _to_disk(self._states.fd)
            os.pwrite(self._log.fd, record, self._log_end)
            _to_disk(self._log.fd)
        before = self._slot_of[clients]
        is_held = _in_tables(before, [table[clients] for table in self._held.values()])
        del self._free[len(self._free) - len(slots) :]
        self._free.extend(before[(before >= 0) & ~is_held].tolist())
        self._slot_of[clients] = slots
        self._last_round, self._log_end = round_index, self._log_end + len(record)

    def _drop_later_records(self) -> None:
        if not self._later_records_dropped and os.fstat(self._log.fd).st_size > self._log_end:
            os.ftruncate(self._log.fd, self._log_end)
            _to_disk(self._log.fd)
        self._later_records_dropped = True

    def last_round(self) -> int:
        """See `ClientStore`."""
        return self._last_round

    def written(self) -> np.ndarray:
        """See `ClientStore`."""
        return self._slot_of >= 0

    def hold(self, rounds: Iterable[int]) -> None:
        """See `ClientStore`."""
        rounds = set(rounds)
        if self._last_round in rounds:
            self._held[self._last_round] = self._slot_of.copy()
        if unknown := sorted(rounds - set(self._held)):
            raise StoreError(
                f"{self._directory} is after round {self._last_round} and no longer holds {unknown}"
            )
        for r in sorted(set(self._held) - rounds):
            table = self._held.pop(r)
            still_used = _in_tables(table, [self._slot_of, *self._held.values()])
            self._free.extend(table[(table >= 0) & ~still_used].tolist())


def _in_tables(slots, tables):
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


def _clients_of(positions):
    """Return ``[(client, index into the table)]`` of the clients that a table of positions has."""
    return [(int(k), where) for where, k in np.ndenumerate(positions) if k >= 0]


def _first_rows(first, known):
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
