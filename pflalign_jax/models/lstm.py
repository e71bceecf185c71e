"""The recurrent network of the FedAvg paper, for next-character prediction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pflalign_jax.models.base import Model, from_flax


class LSTMLayer(nn.Module):
    """A layer of long short-term memory, from zero states.

    Gates are stored side by side in the order input, forget, cell, output. Initialisation is
    Keras's: Glorot uniform for ``kernel``, orthogonal for ``recurrent``, and a ``bias`` of 0 but
    for the forget gates' 1.

    Attributes:
      hidden: width of the states.
    """

    hidden: int

    @nn.compact
    def __call__(self, x):
        """Map ``[B, L, width]`` to ``[B, L, hidden]``."""
        gates = 4 * self.hidden
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], gates))
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.hidden, gates))
        bias = self.param("bias", _forget_bias, (gates,))
        inputs = jnp.swapaxes(x, 0, 1) @ kernel + bias[None, None]
        return jnp.swapaxes(_recurrence(inputs, recurrent), 0, 1)


class LSTM(nn.Module):
    """Embeddings of characters, layers of long short-term memory, dense ``num_classes``.

    820,522 parameters for 90 characters.

    Attributes:
      num_classes: size of the alphabet, in and out; tokens must be below it, a larger one turns
        its example's logits into NaN.
      embedding: width of the embeddings.
      hidden: width of every layer's states.
      layers: how many there are.
    """

    num_classes: int
    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    @nn.compact
    def __call__(self, x):
        """Map ``[B, L]`` tokens to ``[B, L, num_classes]`` logits of the next token."""
        x = nn.Embed(self.num_classes, self.embedding)(x.astype(jnp.int32))
        for _ in range(self.layers):
            x = LSTMLayer(self.hidden)(x)
        return nn.Dense(self.num_classes)(x)


def _forget_bias(key, shape, dtype=jnp.float32):
    del key
    hidden = shape[0] // 4
    return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1)


def _cell(cell, gates):
    """Return the next cell and hidden states, ``[B, hidden]``, for gates before their sigmoids."""
    into, forget, new, out = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(forget) * cell + nn.sigmoid(into) * jnp.tanh(new)
    return cell, nn.sigmoid(out) * jnp.tanh(cell)


@jax.custom_vjp
def _recurrence(inputs, recurrent):
    """Return the hidden states ``[L, B, hidden]`` for ``inputs`` ``[L, B, 4 * hidden]``."""
    return _recurrence_forward(inputs, recurrent)[0]


def _recurrence_forward(inputs, recurrent):
    def step(state, inputs):
        cell, hidden = state
        gates = inputs + hidden @ recurrent
        next_cell, hidden = _cell(cell, gates)
        return (next_cell, hidden), (hidden, cell, gates)

    zero = jnp.zeros((inputs.shape[1], recurrent.shape[0]), inputs.dtype)
    _, (hidden, cells, gates) = lax.scan(step, (zero, zero), inputs)
    return hidden, (hidden, cells, gates, recurrent)


def _recurrence_backward(saved, grad):
    """Differentiate; the weights' gradient is one product after the loop, not a sum within it."""
    hidden, cells, gates, recurrent = saved

    def step(state, at_t):
        for_cell, for_hidden = state
        cell, gates, grad = at_t
        _, vjp = jax.vjp(_cell, cell, gates)
        for_cell, for_gates = vjp((for_cell, for_hidden + grad))
        return (for_cell, for_gates @ recurrent.T), for_gates

    zero = jnp.zeros_like(hidden[0])
    _, for_gates = lax.scan(step, (zero, zero), (cells, gates, grad), reverse=True)
    before = hidden[:-1].reshape(-1, hidden.shape[-1])
    return for_gates, before.T @ for_gates[1:].reshape(-1, gates.shape[-1])


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def lstm(num_classes: int, embedding: int = 8, hidden: int = 256, layers: int = 2) -> Model:
    """Return the FedAvg paper's character model; see `LSTM`.

    It predicts after every character, as there; LEAF's version of the model predicts after the
    last one only. Gradients, and whatever is made of them, work; `jax.jvp` of the model itself
    does not.

    Raises:
      ValueError: if a size is below 1.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
      AISTATS 2017. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097.
    """
    sizes = {"num_classes": num_classes, "embedding": embedding, "hidden": hidden, "layers": layers}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"lstm: {name}={value!r} is not allowed; it must be >= 1")
    return from_flax(LSTM(num_classes, embedding, hidden, layers), head="Dense_0")
