"""FLoRA: adapters are drawn anew in every round; the exact mean of their products is kept."""

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import ServerState, averaged
from pflalign_jax.algorithms.per_client import weighted_sum
from pflalign_jax.federated import (
    GATHERED,
    Algorithm,
    ClientOutput,
    Loss,
    combine_params,
    local_training,
    local_tx,
    partition_params,
)
from pflalign_jax.federated.validation import has_adapters
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.lora import ADAPTERS, adapter_mask, drawn_anew, with_merged


def flora(
    model: Model,
    learning_rate: float = 0.1,
    *,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FLoRA.

    A client draws A anew, sets B to zero, and takes T steps of SGD on both, and on the head where
    there is one. It sends A and B, and what the head has moved. The server stacks the adapters of
    the round, whose product is the exact mean of the products, and merges it into the weights:
    ``W += Σ p_i A_i B_i``. The head is averaged as in FedAvg, which the paper has no need of.

    Args:
      model: what is trained, with adapters; see `pflalign_jax.models.lora`.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.

    References:
      Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
      Adaptations", arXiv:2409.05976, section 3. Departures: all ranks are equal; clients download
      the merged sum of the products, ``[in, out]`` for each layer, there the stacked adapters of
      the last round, which they merge themselves. Frozen weights have one copy for all, so the sum
      is kept beside them and is no adapter that PEFT could hold: `pflalign_jax.models.merge`.
    """
    loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)
    has_adapters("flora", model)

    def client_update(server, client, data, key):
        draw_key, train_key = jax.random.split(key)
        start = drawn_anew(draw_key, server.params)
        merged, trained = partition_params(start, adapter_mask(start, "merged"))

        def loss_of_part(trained, batch, key):
            return loss(combine_params(merged, trained), batch, key)

        local = local_training(loss_of_part, tx, local_epochs, batch_size, elementwise=True)
        result = local.train(trained, tx.init(trained), data, train_key)
        # Adapters as they are, of everything else what it has moved.
        adapters = {ADAPTERS: result.params[ADAPTERS]}
        message = {**optax.tree.sub(result.params, trained), **adapters}
        params = combine_params(merged, result.params)
        return ClientOutput(message, client, params, result.steps, result.metrics)

    def server_update(server, aggregate):
        inbox = aggregate.value

        def add_products(adapter, sent):
            product = jnp.einsum("k,kir,kro->io", inbox.shares, sent["a"], sent["b"])
            return {**adapter, "merged": adapter["merged"] + product}

        messages = dict(inbox.messages)
        sent, old = messages.pop(ADAPTERS), dict(server.params)
        adapters = {path: add_products(a, sent[path]) for path, a in old.pop(ADAPTERS).items()}
        params = optax.tree.add(old, weighted_sum(inbox.shares, messages))
        return ServerState({**params, ADAPTERS: adapters})

    return averaged(
        client_update,
        personal_params=lambda server, client, data: server.params,
        init=lambda params, key: (ServerState(with_merged(params)), ()),
        server_update=server_update,
        aggregation=GATHERED,
    )
