"""Transforms of what a client sends, in the manner of optax but for one message."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Sent(NamedTuple):
    """What goes over the wire for one message.

    Attributes:
      values: how many numbers.
      value_bytes: bytes of each.
      indices: int32 positions of the numbers, where they are not all of the message's.
      scales: float32 numbers by which others are multiplied.
      factored: whether the numbers are factors of what the server gets.
    """

    values: int
    value_bytes: int = 4
    indices: int = 0
    scales: int = 0
    factored: bool = False

    @property
    def num_bytes(self) -> int:
        """All bytes."""
        return self.values * self.value_bytes + 4 * (self.indices + self.scales)


class MessageTransform(NamedTuple):
    """A transform of one client's message; from `clip`, `top_k`, ..., composed by `chain`.

    Attributes:
      init: ``message shapes -> state``, which the client keeps (error feedback).
      update: ``(message, state, key) -> (message, state)``: the message as the server decodes it,
        of the same shapes. Consumes ``key``.
      sent: ``(message shapes, Sent) -> Sent``: what is sent, given what would be sent without this
        transform.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, jax.Array], tuple[Any, Any]]
    sent: Callable[[Any, Sent], Sent]


def dense(shapes: Any) -> Sent:
    """Return what is sent of a message of float32 arrays as it is."""
    return Sent(sum(a.size for a in jax.tree.leaves(shapes)))


def num_bytes(transform: MessageTransform, shapes: Any) -> int:
    """Return the bytes that are sent for a message of these shapes."""
    return transform.sent(shapes, dense(shapes)).num_bytes


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

    def update(message, states, key):
        after = []
        for i, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            message, state = transform.update(message, state, jax.random.fold_in(key, i))
            after.append(state)
        return message, tuple(after)

    def sent(shapes, before):
        for transform in transforms:
            before = transform.sent(shapes, before)
        return before

    return MessageTransform(lambda shapes: tuple(t.init(shapes) for t in transforms), update, sent)


class Memory(NamedTuple):
    """What error feedback keeps: the part of messages that was not sent, and the inner state."""

    error: Any
    inner: Any


def with_error_feedback(transform: MessageTransform) -> MessageTransform:
    """Return a transform that adds to a message what earlier ones of this client left out.

    ``m' = m + e``, sent is ``C(m')``, and ``e = m' - C(m')`` is kept for the client's next round.

    References:
      Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
      arXiv:1901.09847, Algorithm 2.
    """

    def init(shapes):
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return Memory(zeros, transform.init(shapes))

    def update(message, memory, key):
        whole = optax.tree.add(message, memory.error)
        decoded, inner = transform.update(whole, memory.inner, key)
        return decoded, Memory(optax.tree.sub(whole, decoded), inner)

    return MessageTransform(init, update, transform.sent)
