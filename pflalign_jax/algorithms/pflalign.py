"""pFLAlign: local gradient alignment and realignment around the global model."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import ServerState, averaged
from pflalign_jax.align import AlignState, align_transform, direction, new_round, realign
from pflalign_jax.diagnostics import alignment_metrics
from pflalign_jax.federated import (
    Algorithm,
    ClientData,
    ClientOutput,
    Loss,
    local_direction,
    local_training,
)
from pflalign_jax.federated.validation import at_most_one
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """What a client keeps across rounds; never sent.

    Attributes:
      direction: ``Δ``, its last local model minus the global model it had received; None without
        realignment.
      align: `AlignState` with ``v`` and ``u``; ``m`` is None, every round starts it at zero.
      last_round: int32 scalar, how many rounds were done before the client's last one; -1 if it
        had none. None without ``staleness``.
    """

    direction: Any
    align: AlignState
    last_round: Any = None


def pflalign(
    model: Model,
    learning_rate: float = 1.0,
    *,
    beta: float = 0.9,
    eps: float = 1e-12,
    precondition: bool = True,
    correction: str | float = "probability",
    realignment: bool = True,
    server_tx: optax.GradientTransformation | None = None,
    staleness: float | None = None,
    memory_dtype: str | None = None,
    before: optax.GradientTransformation | None = None,
    diagnostics: bool = False,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFLAlign.

    A round of one client: ``w_i = w + Δ``, then T steps
    ``w_i -= η P g + γ Δ / T`` (`pflalign_jax.align_transform`), then ``Δ = w_i - w``, which is
    also the message. The server: ``w += Σ p_i Δ_i``, weighted by training examples.

    Variants: ``precondition=False`` (no preconditioner), ``correction="none" | "sign" | constant``,
    ``realignment=False`` (no personalised initialisation, no correction); both False is FedAvg.

    Extensions of ours for clients that miss rounds, not in the paper: ``server_tx``, ``staleness``.

    Args:
      model, loss, local_epochs, batch_size: as in `fedavg`.
      learning_rate: ``η``, the step size; 10 to 100 times what suits FedAvg, since P shrinks the
        steps.
      beta: ``β`` in [0, 1), the decay of its averages; the method takes 0.9.
      eps: ``ε`` > 0, added to denominators.
      precondition: False steps along ``g`` instead of ``P g``.
      correction: ``γ``, how much of the direction a round removes: "probability" (the method),
        "sign", "none" or a constant in [0, 1].
      realignment: False keeps ``Δ`` at zero.
      server_tx: an extension of ours: an optax transform on the server, which takes
        ``-Σ p_i Δ_i`` for a gradient; None adds the mean. In a config it is the momentum of
        heavy-ball steps of size 1.
      staleness: an extension of ours: ``ρ`` in [0, 1], what remains of a direction for each round
        that its client has missed; the round uses ``ρ^age Δ``. None: all of it, as ``ρ = 1``.
      memory_dtype: "bfloat16" halves the averages that are kept between rounds; None: float32.
      before: an elementwise transform of gradients in front of the alignment, new in every round,
        whose ``centre`` is the received model. In a config it is ``μ`` of
        `pflalign_jax.federated.proximal`.
      local_optimizer: what makes of a gradient the direction that is aligned, new in every round:
        "sgd" takes the gradient, as the method; with "momentum" and "adamw" P scales what they
        step along, weight decay included, and needs a step size of its own.
      diagnostics: True adds `pflalign_jax.diagnostics.alignment_metrics` to the metrics.

    References:
      Kim and Lee, arXiv:2605.02143; see `pflalign_jax.align` for what could be verified.
    """
    align = align_transform(learning_rate, beta, eps, precondition, correction, memory_dtype)
    _check_staleness(staleness, realignment)
    # Of other directions than gradients, or of gradients with a pull, v says nothing of the loss.
    plain = before is None and local_optimizer == "sgd"
    before = _before_alignment(before, local_optimizer)
    tx, loss = optax.chain(before, align), loss or cross_entropy(model)
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def first_state(params):
        delta = jax.tree.map(jnp.zeros_like, params) if realignment else None
        # m is zero at every round's start: None saves a model's worth of memory per client.
        last_round = None if staleness is None else jnp.int32(-1)
        return ClientState(delta, align.init(params)._replace(m=None), last_round)

    def personal_params(server, client, data):
        if not realignment:
            return server.params
        return realign(server.params, current_direction(server, client, staleness))

    def client_update(server, client, data, key):
        extra, used = {"centre": server.params}, current_direction(server, client, staleness)
        # T must be known before the first step: each takes 1 / T of the correction.
        if realignment:
            extra |= {"direction": used, "num_steps": local.num_steps(data)}
        start = personal_params(server, client, data)
        # v and u come from the client, all else is new in a round.
        opt_state = (before.init(start), new_round(client.align))
        result = local.train(start, opt_state, data, key, **extra)
        delta, (_, last) = direction(result.params, server.params), result.opt_state
        more = alignment_metrics(last, used, delta, correction, eps) if diagnostics else {}
        last_round = None if staleness is None else server.rounds
        state = ClientState(delta if realignment else None, last._replace(m=None), last_round)
        return ClientOutput(delta, state, result.params, result.steps, dict(result.metrics) | more)

    return averaged(
        client_update,
        personal_params,
        first_state,
        server_tx,
        count_rounds=staleness is not None,
        fisher=functools.partial(fisher_information, batch_size) if plain else None,
    )


def _before_alignment(
    before: optax.GradientTransformation | None, local_optimizer: str
) -> optax.GradientTransformation:
    before = optax.identity() if before is None else before
    if local_optimizer == "sgd":
        return before
    return optax.chain(before, local_direction(local_optimizer))


def current_direction(server: ServerState, client: ClientState, staleness: float | None) -> Any:
    """Return what a client's direction is worth now, ``ρ^age Δ``.

    Args:
      server: what the client received.
      client: its state; its age is how many rounds it has missed since its last one, 0 for one that
        took part in the round before this one.
      staleness: ``ρ``; None: the direction as it is.
    """
    if staleness is None:
        return client.direction
    age = (server.rounds - client.last_round - 1).astype(jnp.float32)
    kept = jnp.power(jnp.asarray(staleness, jnp.float32), age)
    return jax.tree.map(lambda delta: kept.astype(delta.dtype) * delta, client.direction)


def fisher_information(batch_size: int, client: ClientState, data: ClientData) -> Any:
    """Return the diagonal of the Fisher information of one example, a tree like params: ``B v``.

    v averages squares of a batch's mean gradient: where the mean over all examples is about 0, as
    near a minimum, these are 1 / B of an example's.

    Args:
      batch_size: B; a client with fewer examples steps on all of them.
      client: its state after its steps.
      data: its examples.
    """
    examples = jnp.minimum(batch_size, data.size).astype(jnp.float32)
    return jax.tree.map(lambda v: examples * v.astype(jnp.float32), client.align.v)


def _check_staleness(staleness: float | None, realignment: bool) -> None:
    if staleness is None:
        return
    at_most_one("pflalign", staleness=staleness)
    if not realignment:
        raise ValueError(
            f"pflalign: staleness={staleness!r} does nothing with realignment=False, which keeps "
            "no direction; leave one of them out"
        )
