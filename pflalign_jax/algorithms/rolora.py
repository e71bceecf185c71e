"""RoLoRA: B of every adapter is trained in one round, A in the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_training, local_tx
from pflalign_jax.federated.validation import has_adapters
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.lora import adapter_mask


class ServerState(NamedTuple):
    """The global model, and how many rounds there were, int32."""

    params: Any
    round: jax.Array


def rolora(
    model: Model,
    learning_rate: float = 0.1,
    *,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return RoLoRA: FedAvg in which A and B of the adapters take turns.

    In the first round, and then in every other one, clients train B under the A that they have
    received, in the rounds between A under B. So every mean of products is the product of the
    mean: ``Σ p_i A B_i = A Σ p_i B_i``. The head, where there is one, is trained in every round.

    Args:
      model: what is trained, with adapters; see `pflalign_jax.models.lora`.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.

    References:
      Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
      arXiv:2502.01755, Algorithm 1; first as arXiv:2409.02346. Departures: the half that rests is
      sent as zeros and counted, there it is not sent; training and averaging the head is FedAvg's,
      what the authors do with one could not be verified.
    """
    tx = optax.chain(local_tx(learning_rate, local_optimizer), _in_turn())
    has_adapters("rolora", model)
    local = local_training(
        loss or cross_entropy(model), tx, local_epochs, batch_size, elementwise=True
    )

    def client_update(server, client, data, key):
        w, turn_of_a = server.params, (server.round % 2).astype(jnp.float32)
        turn = jax.tree.map(
            lambda is_a, is_b: turn_of_a if is_a else 1 - turn_of_a if is_b else jnp.float32(1),
            adapter_mask(w, "a"),
            adapter_mask(w, "b"),
        )
        result = local.train(w, tx.init(w), data, key, turn=turn)
        delta = optax.tree.sub(result.params, w)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        params = optax.apply_updates(server.params, aggregate.value)
        return ServerState(params, server.round + 1)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: server.params,
        init=lambda params, key: (ServerState(params, jnp.int32(0)), ()),
        server_update=server_update,
    )


def _in_turn() -> optax.GradientTransformationExtraArgs:
    """Return a transform that multiplies updates by ``turn``, 0 or 1 for every leaf."""

    def update(updates, state, params=None, *, turn, **extra):
        del params, extra
        return optax.tree.mul(updates, turn), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
