"""Greedy generation with a cache of keys and values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pflalign_jax.models.pretrained.split import causal_mask


class _State(NamedTuple):
    """What a step of generation hands on.

    Attributes:
      generated: how many tokens are generated.
      tokens: ``[B, new_tokens]``, padding where nothing is generated.
      last: ``[B]``, the latest token.
      ended: ``[B]``, whether the end token was generated.
      caches: of all layers, with a slot for each token of prompt and answer.
    """

    generated: jax.Array
    tokens: jax.Array
    last: jax.Array
    ended: jax.Array
    caches: Any


def greedy(
    forward: Callable[..., tuple[jax.Array, Any]],
    logits: Callable[[jax.Array], jax.Array],
    prompts: jax.Array,
    mask: jax.Array,
    new_tokens: int,
    end_id: int,
    pad_id: int,
) -> jax.Array:
    """Return the most likely next token, again and again.

    Shapes depend on the shapes of prompts and on ``new_tokens`` alone, so that under `jax.jit`
    (``static_argnames="new_tokens"``) one program serves all prompts. It ends early when every row
    has its end token.

    Args:
      forward: ``(tokens, positions, mask, caches, slot) -> (hidden, caches)``: hidden states
        ``[B, T, D]`` of tokens ``[B, T]``. With caches None it starts new ones, of T slots.
        Slots are the third axis from the end.
      logits: ``[B, D] -> [B, V]``.
      prompts: ``[B, P]``, filled up on the right; with at least one token each.
      mask: ``[B, P]``, True for the prompts' tokens.
      new_tokens: how many tokens at most.
      end_id: after this token a row has padding only.
      pad_id: the padding.

    Returns:
      ``[B, new_tokens]`` int32: the answer, its end token if it has one, then padding.
    """
    num_rows, length = prompts.shape
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)

    def next_token(hidden: jax.Array) -> jax.Array:
        return jnp.argmax(logits(hidden), axis=-1).astype(jnp.int32)

    hidden, caches = forward(prompts, jnp.arange(length)[None], causal_mask(mask), None, 0)
    ends = jnp.maximum(lengths - 1, 0)[:, None, None]
    first = next_token(jnp.take_along_axis(hidden, ends, axis=1)[:, 0])

    def with_free_slots(cache: jax.Array) -> jax.Array:
        free = [(0, 0)] * cache.ndim
        free[-3] = (0, new_tokens)
        return jnp.pad(cache, free)

    def write(tokens: jax.Array, new: jax.Array, column: jax.Array | int) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(tokens, new[:, None], column, axis=1)

    def unfinished(state: _State) -> jax.Array:
        return (state.generated < new_tokens) & ~jnp.all(state.ended)

    def step(state: _State) -> _State:
        # The latest token stands in slot `length + latest`, whatever the prompt's length: the
        # order of slots means nothing, positions come with the keys.
        latest = state.generated - 1
        answer = jnp.arange(new_tokens)[None] <= latest
        seen = jnp.concatenate([mask, jnp.broadcast_to(answer, (num_rows, new_tokens))], axis=1)
        hidden, caches = forward(
            state.last[:, None],
            (lengths + latest)[:, None],
            seen[:, None, None, :],
            state.caches,
            length + latest,
        )
        new = jnp.where(state.ended, pad_id, next_token(hidden[:, 0]))
        return _State(
            state.generated + 1,
            write(state.tokens, new, state.generated),
            new,
            state.ended | (new == end_id),
            caches,
        )

    blank = jnp.full((num_rows, new_tokens), pad_id, jnp.int32)
    state = _State(
        jnp.int32(1),
        write(blank, first, 0),
        first,
        first == end_id,
        jax.tree.map(with_free_slots, caches),
    )
    return lax.while_loop(unfinished, step, state).tokens
