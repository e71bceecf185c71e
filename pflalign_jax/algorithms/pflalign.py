"""pFLAlign: local gradient alignment and realignment around the global model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.align import AlignState, align_transform, direction, new_round, realign
from pflalign_jax.diagnostics import alignment_metrics
from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_training


class ServerState(NamedTuple):
    """The global model ``w``."""

    params: Any


class ClientState(NamedTuple):
    """What a client keeps across rounds; never sent.

    Attributes:
      direction: ``Δ``, its last local model minus the global model it had received; None without
        realignment.
      align: `AlignState` with ``v`` and ``u``; ``m`` is None, every round starts it at zero.
    """

    direction: Any
    align: AlignState


def pflalign(
    loss: Loss,
    learning_rate: float = 1.0,
    *,
    beta: float = 0.9,
    eps: float = 1e-12,
    precondition: bool = True,
    correction: str | float = "probability",
    realignment: bool = True,
    memory_dtype: str | None = None,
    before: optax.GradientTransformation | None = None,
    diagnostics: bool = False,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFLAlign.

    A round of one client: ``w_i = w + Δ``, then T steps
    ``w_i -= η P g + γ Δ / T`` (`pflalign_jax.align_transform`), then ``Δ = w_i - w``, which is
    also the message. The server: ``w += Σ p_i Δ_i``, weighted by training examples.

    Variants: ``precondition=False`` (no preconditioner), ``correction="none" | "sign" | constant``,
    ``realignment=False`` (no personalised initialisation, no correction); both False is FedAvg.

    Args:
      loss: ``(params, Batch, key) -> scalar``, e.g. `pflalign_jax.models.cross_entropy(model)`.
      learning_rate: ``η``; 10 to 100 times what suits FedAvg, since P shrinks the steps.
      beta, eps, precondition, correction, memory_dtype: of `pflalign_jax.align_transform`.
      realignment: False keeps ``Δ`` at zero.
      before: an elementwise transform of gradients in front of the alignment, new in every round,
        e.g. `pflalign_jax.federated.proximal`, whose ``centre`` is the received model.
      diagnostics: True adds `pflalign_jax.diagnostics.alignment_metrics` to the metrics.
      local_epochs, batch_size: local work per round.

    References:
      Kim and Lee, arXiv:2605.02143; see `pflalign_jax.align` for what could be verified.
    """
    align = align_transform(learning_rate, beta, eps, precondition, correction, memory_dtype)
    before = optax.identity() if before is None else before
    tx = optax.chain(before, align)
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def init(params, key):
        del key
        delta = jax.tree.map(jnp.zeros_like, params) if realignment else None
        return ServerState(params), ClientState(delta, align.init(params)._replace(m=None))

    def personal_params(server, client, data):
        del data
        return realign(server.params, client.direction) if realignment else server.params

    def client_update(server, client, data, key):
        extra = {"centre": server.params}
        if realignment:
            extra |= {"direction": client.direction, "num_steps": local.num_steps(data)}
        start = personal_params(server, client, data)
        opt_state = (before.init(start), new_round(client.align))
        result = local.train(start, opt_state, data, key, **extra)
        delta, (_, last) = direction(result.params, server.params), result.opt_state
        metrics = dict(result.metrics)
        if diagnostics:
            metrics |= alignment_metrics(last, client.direction, delta, correction, eps)
        state = ClientState(delta if realignment else None, last._replace(m=None))
        return ClientOutput(delta, state, result.params, result.steps, metrics)

    def server_update(server, aggregate):
        mean_delta = aggregate.value
        return ServerState(optax.apply_updates(server.params, mean_delta))

    return Algorithm(
        init, client_update, server_update, personal_params, lambda server: server.params
    )
