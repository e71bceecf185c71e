"""Packets as the contents of Flower's messages, and back. No pickle is written or read."""

import importlib
import io
from typing import Any

import numpy as np

from pflalign_jax.datasets.array_files import check_header, named
from pflalign_jax.deploy.packets import Packet, RefusedError
from pflalign_jax.errors import UserError

TYPES = {"describe": "query.describe", "train": "train", "evaluate": "evaluate"}
"""Flower's message type of each kind of request."""


def flower(module: str) -> Any:
    """Return a module of the package ``flwr``, which is optional.

    Raises:
      ImportError: saying how to install it.
    """
    try:
        return importlib.import_module(f"flwr.{module}")
    except ImportError as error:
        raise ImportError(
            "clients on their own machines need the package flwr (Flower) >= 1.42; install it with "
            f"pip install 'pflalign-jax[flower]' ({error})"
        ) from error


def content_of(packet: Packet) -> Any:
    """Return a packet as the content of a Flower message, a ``RecordDict``."""
    records = flower("app")
    arrays = {name: records.Array(a) for name, a in packet.arrays.items()}
    values = records.ConfigRecord(dict(packet.values))
    return records.RecordDict({"arrays": records.ArrayRecord(arrays), "values": values})


def packet_of(content: Any) -> Packet:
    """Return the packet in the content of a Flower message.

    Raises:
      RefusedError: if it is none.
    """
    records = flower("app")
    arrays, values = content.get("arrays"), content.get("values")
    kinds = (arrays, records.ArrayRecord), (values, records.ConfigRecord)
    if not all(isinstance(record, kind) for record, kind in kinds):
        raise RefusedError(f"a message holds {sorted(content)}; it must hold arrays and values")
    return Packet({name: _array_of(name, array) for name, array in arrays.items()}, dict(values))


def _array_of(name: str, array: Any) -> np.ndarray:
    """Return an array; no Python objects, and no more bytes than there are."""
    if array.stype != "numpy.ndarray":
        raise RefusedError(f"array {name} is written as {array.stype!r}, not as numpy.ndarray")
    try:
        with named():
            check_header(name, io.BytesIO(array.data), len(array.data))
            return np.load(io.BytesIO(array.data), allow_pickle=False)
    except UserError as error:
        raise RefusedError(f"array {name} cannot be read: {error}") from error
