"""The recurrent network of the FedAvg paper, for next-character prediction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pflalign_jax.models.base import Model, check_sizes, from_flax


class LSTMLayer(nn.Module):
    """A layer of long short-term memory that starts from states of zeros.

    Gates are stored side by side in the order input, forget, cell, output. Initialisation is that
    of Keras: Glorot uniform for ``kernel``, orthogonal for ``recurrent``, and 0 for ``bias`` except
    1 for the forget gates.

    Attributes:
      hidden: width of the states.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, L, width]`` to ``[B, L, hidden]``."""
        gates = 4 * self.hidden
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], gates))
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.hidden, gates))
        bias = self.param("bias", _forget_bias, (gates,))
        # The inputs' part of all gates in one product; only the recurrent part has to wait for the
        # step before. Time comes first, as `lax.scan` wants it.
        inputs = jnp.swapaxes(x, 0, 1) @ kernel + bias[None, None]
        return jnp.swapaxes(_recurrence(inputs, recurrent), 0, 1)


class LSTM(nn.Module):
    """Embeddings of characters, layers of long short-term memory, dense ``num_classes``.

    820,522 parameters for 90 characters. Attributes: as of `lstm`.
    """

    num_classes: int
    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, L]`` tokens to ``[B, L, num_classes]`` logits of the next token."""
        x = nn.Embed(self.num_classes, self.embedding)(x.astype(jnp.int32))
        for _ in range(self.layers):
            x = LSTMLayer(self.hidden)(x)
        return nn.Dense(self.num_classes)(x)


def _forget_bias(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Initialise a bias: 1 for the forget gates, so that states are kept at first, 0 elsewhere."""
    del key
    hidden = shape[0] // 4
    return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1)


def _cell(cell: jax.Array, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the next cell and hidden states, ``[B, hidden]``, for gates before their sigmoids."""
    write, forget, new, read = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(forget) * cell + nn.sigmoid(write) * jnp.tanh(new)
    return cell, nn.sigmoid(read) * jnp.tanh(cell)


State = tuple[jax.Array, jax.Array]
"""Cell and hidden state, or the gradients of these, each ``[B, hidden]``."""

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Hidden states, the cells before each step, gates, and the recurrent weights."""


# The gradient is written by hand: the automatic one adds up the recurrent weights' gradient,
# [hidden, 4 * hidden], in every step of the loop.
@jax.custom_vjp
def _recurrence(inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Return the hidden states ``[L, B, hidden]`` for ``inputs`` ``[L, B, 4 * hidden]``."""
    return _recurrence_forward(inputs, recurrent)[0]


def _recurrence_forward(inputs: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, Residuals]:
    def step(state: State, inputs: jax.Array) -> tuple[State, tuple[jax.Array, ...]]:
        cell, hidden = state
        gates = inputs + hidden @ recurrent
        next_cell, hidden = _cell(cell, gates)
        return (next_cell, hidden), (hidden, cell, gates)

    zero = jnp.zeros((inputs.shape[1], recurrent.shape[0]), inputs.dtype)
    _, (hidden, cells, gates) = lax.scan(step, (zero, zero), inputs)
    return hidden, (hidden, cells, gates, recurrent)


def _recurrence_backward(residuals: Residuals, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of ``inputs`` and ``recurrent`` for that of the hidden states."""
    hidden, cells, gates, recurrent = residuals

    def step(state: State, at_t: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
        cell_grad, hidden_grad = state
        cell, gates, grad = at_t
        _, vjp = jax.vjp(_cell, cell, gates)
        # A hidden state acts on the output and on the next step.
        cell_grad, gates_grad = vjp((cell_grad, hidden_grad + grad))
        return (cell_grad, gates_grad @ recurrent.T), gates_grad

    zero = jnp.zeros_like(hidden[0])
    _, gates_grad = lax.scan(step, (zero, zero), (cells, gates, grad), reverse=True)
    # One product over all steps. The first step is left out: its hidden state before is 0.
    hidden_before = hidden[:-1].reshape(-1, hidden.shape[-1])
    return gates_grad, hidden_before.T @ gates_grad[1:].reshape(-1, gates.shape[-1])


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def lstm(num_classes: int, embedding: int = 8, hidden: int = 256, layers: int = 2) -> Model:
    """Return the FedAvg paper's character model.

    It predicts after every character, as in the paper; LEAF's version of the model predicts after
    the last one only. Gradients and derivatives of gradients work; `jax.jvp` of the model itself
    does not.

    Args:
      num_classes: size of the alphabet, of inputs and outputs; a token that is not below it turns
        its example's logits into NaN.
      embedding: width of the embeddings.
      hidden: width of every layer's states.
      layers: number of recurrent layers.

    Raises:
      ValueError: if a size is below 1.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
      AISTATS 2017. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097.
    """
    check_sizes("lstm", num_classes=num_classes, embedding=embedding, hidden=hidden, layers=layers)
    return from_flax(LSTM(num_classes, embedding, hidden, layers), head="Dense_0")
