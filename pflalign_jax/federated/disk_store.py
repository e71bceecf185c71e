"""A store of client states in files: whole rounds after a crash, checksums for all that is read."""

import contextlib
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pflalign_jax.federated.client_store import StoreError, clients_of, first_rows

STATES = "states.bin"
LOG = "rounds.log"
LAYOUT = "layout.json"

CHECKED = "checksums"
"""Key of ``layout.json``: CRC-32 where records have checksums; earlier versions wrote none."""


class DiskStore:
    """A `ClientStore` in files, safe against crashes at round granularity.

    ``states.bin`` is a list of slots, each of one client's whole state. A round's states go to
    free slots; when they are on the disk, one record in ``rounds.log`` says who is where now and
    what the checksums of the slots are, and the slots held before become free. A store opened after
    a crash ignores a record that is not whole, so it always holds the state after a whole round.
    The file has at most K + 2C slots, and none for clients that never took part.

    The slots of a round that is held, up to K further ones, are not written over, so that the store
    can be opened as it was then. The first write drops the records of later rounds.

    A store that an earlier version began has no checksums, and goes on without.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
      directory: made if it is missing; a store of the same shapes in it is continued.
      until: go back to after this round, which must have been held; None: the last one.
      held: further rounds up to ``until`` that were held and still are to be.
      names: ``[K]`` of the clients, for messages; None: their positions.
      read_only: write nothing, not even a directory.

    Attributes:
      checked: whether what is read is checked.

    Raises:
      StoreError: if the directory cannot be written, or holds other shapes or not these rounds; in
        ``read`` and ``write``, for what the operating system refuses; in ``read``, naming the
        client, for a state that is not what was written.
    """

    def __init__(
        self,
        first: Any,
        num_clients: int,
        directory: str | os.PathLike,
        until: int | None = None,
        held: Iterable[int] = (),
        names: Sequence[str] | np.ndarray | None = None,
        read_only: bool = False,
    ):
        self._directory = directory = pathlib.Path(directory)
        self._first, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
        self._treedef: Any = treedef
        self._slot_bytes = sum(leaf.nbytes for leaf in self._first)
        self._names = np.arange(num_clients) if names is None else names
        wanted_layout = _layout(self._first, num_clients)
        with _explained(
            f"{directory} cannot hold client states; choose another directory or make room"
        ):
            if not read_only:
                directory.mkdir(parents=True, exist_ok=True)
            self.checked = _check_layout(directory, wanted_layout, read_only)
            self._states, self._log = (_File(directory / n, read_only) for n in (STATES, LOG))
            if not read_only:
                _sync_directory(directory)
        wanted = {r for r in (*held, until) if r is not None}
        found = _replay(self._log.fd, num_clients, self.checked, until, wanted)
        self._slot_of, self._sums = found.slot_of, found.sums
        self._last_round, self._log_end = found.round, found.end
        _refuse_missing(directory, wanted, found)
        # Of every round that is held, what _slot_of was after it. Nobody was written by round 0.
        self._held = {r: found.tables.get(r, np.full(num_clients, -1)) for r in wanted}
        taken = np.concatenate([self._slot_of, *self._held.values()])
        self._num_slots = int(taken.max(initial=-1)) + 1
        self._free = sorted(set(range(self._num_slots)) - set(taken.tolist()), reverse=True)
        # Records of later rounds go with the first write, not when the store is only read.
        self._later_records_dropped = False

    def read(self, positions: np.ndarray) -> Any:
        """See `ClientStore`."""
        rows = first_rows(self._first, (positions >= 0) & (self._slot_of[positions] >= 0))
        with _explained(f"{self._directory}: client states cannot be read"):
            for k, where in clients_of(positions):
                slot = int(self._slot_of[k])
                if slot < 0:
                    continue
                parts = _parts(rows, where)
                _transfer(os.preadv, self._states.fd, parts, slot * self._slot_bytes)
                if self.checked and _checksum(parts) != self._sums[slot]:
                    raise StoreError(self._damage(k, slot))
        return self._treedef.unflatten(rows)

    def _damage(self, k: int, slot: int) -> str:
        start = slot * self._slot_bytes
        return (
            f"{self._directory / STATES} is damaged: the state of client {self._names[k]} (bytes "
            f"{start} to {start + self._slot_bytes}) does not match its checksum. The same command "
            "goes back to the last checkpoint whose client states are whole; without one put the "
            "file back, or begin again in another directory"
        )

    def write(self, positions: np.ndarray, state: Any, round_index: int) -> None:
        """See `ClientStore`."""
        rows = [np.ascontiguousarray(row) for row in self._treedef.flatten_up_to(state)]
        members = clients_of(positions)
        while len(self._free) < len(members):
            self._free.append(self._num_slots)
            self._num_slots += 1
        slots = self._free[-len(members) :] if members else []
        clients = [k for k, _ in members]
        with _explained(
            f"{self._directory} cannot take the client states of round {round_index}, it holds "
            f"those of round {self._last_round}; make room"
        ):
            self._drop_later_records()
            sums = []
            for (_, where), slot in zip(members, slots, strict=True):
                parts = _parts(rows, where)
                _transfer(os.pwritev, self._states.fd, parts, slot * self._slot_bytes)
                sums += [_checksum(parts)] if self.checked else []
            record = np.array([round_index, len(members), *clients, *slots, *sums], np.int64)
            content = record.tobytes() + np.int64(zlib.crc32(record.tobytes())).tobytes()
            # The record must not reach the disk before the states that it speaks of.
            _to_disk(self._states.fd)
            os.pwrite(self._log.fd, content, self._log_end)
            _to_disk(self._log.fd)
        before = self._slot_of[clients]
        is_held = _in_tables(before, [table[clients] for table in self._held.values()])
        del self._free[len(self._free) - len(slots) :]
        self._free.extend(before[(before >= 0) & ~is_held].tolist())
        self._slot_of[clients] = slots
        self._sums = _with_sums(self._sums, slots, sums)
        self._last_round, self._log_end = round_index, self._log_end + len(content)

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


def damaged_clients(directory: str | os.PathLike, round_index: int) -> list[int]:
    """Return the positions of clients whose states after a round are not what was written.

    All states of the round are read; nothing is written. A store without checksums has none.

    Raises:
      StoreError: if the directory holds no store, or not this round.
    """
    directory = pathlib.Path(directory)
    layout = _read_layout(directory)
    slot_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.leaves)
    with _explained(f"{directory}: client states cannot be read"):
        states, log = (_File(directory / name, read_only=True) for name in (STATES, LOG))
        found = _replay(log.fd, layout.num_clients, layout.checked, round_index, {round_index})
        _refuse_missing(directory, {round_index}, found)
        if not layout.checked:
            return []
        content, damaged = np.empty(slot_bytes, np.uint8), []
        # In the order of the file.
        for k in np.argsort(found.slot_of).tolist():
            slot = int(found.slot_of[k])
            if slot < 0:
                continue
            whole = os.preadv(states.fd, [content.data], slot * slot_bytes) == slot_bytes
            if not whole or zlib.crc32(content.data) != found.sums[slot]:
                damaged.append(k)
    return sorted(damaged)


def _refuse_missing(directory, rounds, found):
    """Refuse a store that does not hold these rounds."""
    if missing := sorted(rounds - {0, *found.tables}):
        raise StoreError(
            f"{directory} does not hold client states after round {missing[0]}, only up to "
            f"round {found.round}; they were deleted or belong to another run"
        )


def _in_tables(slots, tables):
    """Tell which slots some table has for the same client."""
    return np.any([table == slots for table in tables], axis=0) if tables else slots < -1


def _with_sums(sums, slots, new):
    """Return checksums by slot with those of some slots replaced; the array grows with them."""
    if new:
        needed = int(np.max(slots)) + 1
        if needed > len(sums):
            further = max(needed, 2 * len(sums)) - len(sums)
            sums = np.concatenate([sums, np.zeros(further, np.int64)])
        sums[slots] = new
    return sums


_to_disk = getattr(os, "fdatasync", os.fsync)


@contextlib.contextmanager
def _explained(message: str) -> Iterator[None]:
    """Turn an error of the operating system into a `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{message} ({error})") from error


class _File:
    """A file descriptor that is closed when nobody needs it any more."""

    def __init__(self, path, read_only):
        self.fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, 0o644)

    def __del__(self, close=os.close):  # at the interpreter's end `os` may be gone
        if hasattr(self, "fd"):
            close(self.fd)


def _sync_directory(directory):
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Layout(NamedTuple):
    """What ``layout.json`` says: leaves are ``[shape, dtype]``."""

    num_clients: int
    leaves: list[Any]
    checked: bool


def _layout(leaves, num_clients):
    """Return what a store of these leaves holds, as in ``layout.json``."""
    return {
        "clients": num_clients,
        "leaves": [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves],
    }


def _read_layout(directory: pathlib.Path) -> _Layout:
    """Return ``layout.json``.

    Raises:
      StoreError: if it is missing or damaged.
    """
    path = directory / LAYOUT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _Layout(int(found["clients"]), list(found["leaves"]), CHECKED in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read ({type(error).__name__}: {error}); put it back, or begin again "
            "in another directory"
        ) from error


def _check_layout(directory, layout, read_only):
    """Write what a new store holds, or refuse another's; return whether it has checksums."""
    path = directory / LAYOUT
    if read_only or path.exists():
        found = _read_layout(directory)
        held = {"clients": found.num_clients, "leaves": found.leaves}
        if held != layout:
            raise StoreError(
                f"{directory} holds client states of another run: {held}, not {layout}; "
                "choose another directory or delete it"
            )
        return found.checked
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({**layout, CHECKED: "crc32"}), encoding="utf-8")
    temporary.replace(path)
    return True


class _Replayed(NamedTuple):
    """What a log says.

    Attributes:
      round: the last one.
      end: where the next record goes.
      slot_of: ``[K]`` the slot that holds each client's state; -1: it was never written.
      sums: checksums by slot; empty in a store that has none.
      tables: what ``slot_of`` was after wanted rounds.
    """

    round: int
    end: int
    slot_of: np.ndarray
    sums: np.ndarray
    tables: dict[int, np.ndarray]


def _replay(log, num_clients, checked, until, wanted):
    """Read whole records up to round ``until``."""
    slot_of, sums, tables = np.full(num_clients, -1), np.zeros(0, np.int64), {}
    content = np.frombuffer(os.pread(log, os.fstat(log).st_size // 8 * 8, 0), np.int64)
    last, start, columns = 0, 0, 3 if checked else 2
    while start + 2 < len(content):
        round_index, count = content[start : start + 2].tolist()
        if until is not None and round_index > until:
            break
        end = start + 2 + columns * count
        if (
            count < 0
            or end >= len(content)
            or content[end] != zlib.crc32(content[start:end].tobytes())
        ):
            break
        clients, slots, *new = content[start + 2 : end].reshape(columns, count)
        slot_of[clients] = slots
        if new and count:
            sums = _with_sums(sums, slots, new[0].tolist())
        last, start = round_index, end + 1
        if last in wanted:
            tables[last] = slot_of.copy()
    return _Replayed(last, 8 * start, slot_of, sums, tables)


def _parts(rows, where):
    """Return the bytes of one client's rows, as arrays that share their memory."""
    parts = [row[(*where, ...)].reshape(-1).view(np.uint8) for row in rows]
    return [part for part in parts if len(part)]


def _checksum(parts):
    """Return the CRC-32 of arrays of bytes, one after the other."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _transfer(call, file, parts, offset):
    """Read or write the parts of one client's state, one after the other from ``offset`` on."""
    wanted = sum(len(part) for part in parts)
    done = sum(
        call(file, parts[i : i + 512], offset + sum(len(part) for part in parts[:i]))
        for i in range(0, len(parts), 512)
    )
    if done != wanted:
        raise OSError(f"only {done} of {wanted} bytes of a client's state could be moved")
