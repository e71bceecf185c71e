"""Weights of a model that nobody trains, as an argument of compiled programs."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


class Frozen:
    """Weights of a model that nobody trains: those of a pretrained network below its adapters.

    They are no parameters: no message, client state or checkpoint has them, and there is one copy
    on each device, whatever the number of clients. A function of a model reads `weights` where it
    needs them. What compiles it makes them an argument of the program with `as_argument`; else XLA
    would take them for constants, which it stores in the program and folds.

    Attributes:
      digest: SHA-256 of names, shapes, types and values, as hexadecimal digits; tells whether a run
        goes on with the weights it began with.

    Args:
      weights: a pytree of arrays.
      below: further ones that no function of the model reads, as `Model.prepare` has used them
        before; the digest is of both.
    """

    def __init__(self, weights: Any, below: Any = None) -> None:
        self._own, self._below = weights, below
        self._argument: list[Any] = []  # of the programs that are being traced, innermost last
        self._digest: str | None = None

    @property
    def weights(self) -> Any:
        """A pytree of arrays: the argument of the program that is being traced, or the own ones."""
        return self._argument[-1] if self._argument else self._own

    @property
    def digest(self) -> str:
        """Return it; computed once, since it reads all weights."""
        if self._digest is None:
            sum_of_all = hashlib.sha256()
            both = self._own if self._below is None else (self._own, self._below)
            for path, leaf in jax.tree_util.tree_leaves_with_path(both):
                array = np.ascontiguousarray(leaf)
                about = f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}"
                sum_of_all.update(about.encode())
                sum_of_all.update(array.tobytes())
            self._digest = sum_of_all.hexdigest()
        return self._digest

    @contextlib.contextmanager
    def _replaced(self, weights: Any) -> Iterator[None]:
        self._argument.append(weights)
        try:
            yield
        finally:
            self._argument.pop()


def as_argument(frozen: Frozen | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``(weights, *args) -> function(*args)``, in which a model's frozen weights are given.

    Args:
      frozen: of the model; None: it has none, and ``weights`` is not looked at.
      function: to be compiled.
    """

    def with_weights(weights: Any, *args: Any, **options: Any) -> Any:
        if frozen is None:
            return function(*args, **options)
        with frozen._replaced(weights):
            return function(*args, **options)

    return with_weights


def weights_of(frozen: Frozen | None) -> Any:
    """Return the weights, () where a model has none."""
    return () if frozen is None else frozen.weights
