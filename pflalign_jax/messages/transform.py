"""Transforms of a client's message, in the form of optax's transforms of a gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Sent(NamedTuple):
    """What is sent over the network for one message.

    Attributes:
      values: number of values.
      value_bytes: bytes of each value.
      indices: number of int32 positions, if only some coordinates of the message are sent.
      scales: number of float32 scales that values are multiplied by.
      factored: whether the values are factors of the message that the server decodes.
    """

    values: int
    value_bytes: int = 4
    indices: int = 0
    scales: int = 0
    factored: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes of values, positions and scales together."""
        return self.values * self.value_bytes + 4 * (self.indices + self.scales)


class MessageTransform(NamedTuple):
    """A transform of one client's message; from `clip`, `top_k`, ..., composed by `chain`.

    Attributes:
      init: ``message shapes -> state``, which the client keeps (error feedback).
      update: ``(message, state, key) -> (message, state)``: the message as the server decodes it,
        with the same shapes. Consumes ``key``.
      sent: ``(message shapes, Sent) -> Sent``: what is sent, given what would be sent without this
        transform.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, jax.Array], tuple[Any, Any]]
    sent: Callable[[Any, Sent], Sent]


def dense(shapes: Any) -> Sent:
    """Return what is sent of a message of float32 arrays without any transform."""
    return Sent(sum(a.size for a in jax.tree.leaves(shapes)))


def transformed_bytes(transform: MessageTransform, shapes: Any) -> int:
    """Return the bytes that are sent for a message of these shapes after a transform."""
    return transform.sent(shapes, dense(shapes)).total_bytes


def stateless(
    update: Callable[[Any, jax.Array], Any], sent: Callable[[Any, Sent], Sent]
) -> MessageTransform:
    """Return a transform without state.

    Args:
      update: ``(message, key) -> message``.
      sent: see `MessageTransform`.
    """
    return MessageTransform(lambda shapes: (), lambda m, state, key: (update(m, key), state), sent)


def chain(*transforms: MessageTransform) -> MessageTransform:
    """Return a transform that applies others in order, e.g. ``chain(clip(1.0), top_k(0.01))``."""

    def init(shapes: Any) -> tuple[Any, ...]:
        return tuple(transform.init(shapes) for transform in transforms)

    def update(
        message: Any, states: tuple[Any, ...], key: jax.Array
    ) -> tuple[Any, tuple[Any, ...]]:
        after = []
        # Keyed by its position: a transform draws the same whatever comes after it.
        for i, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            message, state = transform.update(message, state, jax.random.fold_in(key, i))
            after.append(state)
        return message, tuple(after)

    def sent(shapes: Any, before: Sent) -> Sent:
        for transform in transforms:
            before = transform.sent(shapes, before)
        return before

    return MessageTransform(init, update, sent)


class Memory(NamedTuple):
    """State of error feedback: the part of messages that was not sent, and the inner state."""

    error: Any
    inner: Any


def with_error_feedback(transform: MessageTransform) -> MessageTransform:
    """Return a transform that adds to a message what this client's earlier messages left out.

    With ``m' = m + e`` it sends ``C(m')`` and keeps ``e = m' - C(m')`` for the client's next round.

    References:
      Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
      arXiv:1901.09847, Algorithm 2.
    """

    def init(shapes: Any) -> Memory:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return Memory(zeros, transform.init(shapes))

    def update(message: Any, memory: Memory, key: jax.Array) -> tuple[Any, Memory]:
        whole = optax.tree.add(message, memory.error)
        decoded, inner = transform.update(whole, memory.inner, key)
        return decoded, Memory(optax.tree.sub(whole, decoded), inner)

    return MessageTransform(init, update, transform.sent)
