"""What a server and its nodes send each other: named arrays and a few plain values, both checked.

Nothing here knows how a packet travels; `pflalign_jax.deploy.flower` does.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pflalign_jax.errors import UserError
from pflalign_jax.runs import files
from pflalign_jax.runs.named_arrays import NamedArraysError, named_arrays, tree_of_named
from pflalign_jax.runs.resuming import MAY_CHANGE

FORMAT = 1
"""Version of what packets hold; one of another is refused."""

REFUSED = "refused"
"""Name of the value with which a node says why it does not answer."""


class RefusedError(UserError):
    """A packet that is not what it must be; the message names what is wrong with it."""


class Packet(NamedTuple):
    """What is sent once, in either direction.

    Attributes:
      arrays: NumPy arrays by name; a tree's are named by their paths.
      values: numbers, texts, truth values, or lists of one kind of them, by name.
    """

    arrays: Mapping[str, np.ndarray]
    values: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays; values and what the transport adds come on top."""
        return sum(a.nbytes for a in self.arrays.values())


def refusal(reason: str) -> Packet:
    """Return the answer of a node that does not do what it was asked for."""
    return Packet({}, {REFUSED: reason})


def packed(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    """Return a tree's arrays by their paths, below ``prefix``."""
    return {name: np.asarray(leaf) for name, leaf in named_arrays(prefix, tree).items()}


def unpacked(packet: Packet, prefix: str, shapes: Any, finite: bool = True) -> Any:
    """Return the tree below ``prefix``, after a look at what it is.

    Args:
      packet: received.
      prefix: of the names.
      shapes: the tree that it must be.
      finite: whether to refuse numbers that are not finite.

    Raises:
      RefusedError: for a missing or further array, another shape or type, or numbers that are not
        finite.
    """
    try:
        tree = tree_of_named(packet.arrays, prefix, shapes)
    except NamedArraysError as error:
        raise RefusedError(
            f"arrays do not fit this config: {error}; server and node must run the same config"
        ) from error
    for name, array in named_arrays(prefix, tree).items():
        if finite and np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            bad = array[~np.isfinite(array)].flat[0]
            raise RefusedError(f"{name} holds {bad}; all of its numbers must be finite")
    return tree


def value_of(packet: Packet, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a value of a packet.

    Raises:
      RefusedError: if it is missing or of another type.
    """
    found = packet.values.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # A bool is an int in Python.
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise RefusedError(f"{name}={found!r} is not allowed in a packet; it must be {names}")
    return found


def list_of(packet: Packet, name: str, kind: type | tuple[type, ...]) -> list[Any]:
    """Return a value of a packet that is a list.

    Raises:
      RefusedError: if it is missing, none, or has elements of another type.
    """
    found = value_of(packet, name, list)
    for item in found:
        value_of(Packet({}, {name: item}), name, kind)
    return found


def config_hash(config: ConfigDict) -> str:
    """Return a SHA-256 of a resolved config, without the fields that a run may change.

    A node's own path to its data is none of the config's: it goes in its place afterwards.
    """
    fields = files.flat_fields(files.as_written(config.to_dict()))
    kept = {k: v for k, v in sorted(fields.items()) if k not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
