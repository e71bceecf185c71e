"""FedPHP: a running mean of a client's models is its own, and teaches its next round."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import averaged, update_of_received
from pflalign_jax.algorithms.fedcp import discrepancy
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import at_least_one, at_most_one
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.base import labelled_features, single_head


class ClientState(NamedTuple):
    """The inherited private model ``h_i``, and the rounds it has taken part in, int32 scalar."""

    params: Any
    rounds: jax.Array


def fedphp(
    model: Model,
    learning_rate: float = 0.1,
    *,
    lam: float = 0.1,
    mu: float = 0.9,
    momentum_rounds: int = 100,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedPHP.

    A client descends on ``(1 - λ) F_i(w_i) + λ MMD(z, z_h)`` with the features z of w_i and z_h of
    its inherited private model h_i, its personal one, which then becomes ``m h_i + (1 - m) w_i``;
    m is ``μ min(r/Q, 1)`` after r earlier rounds of this client. The server averages w_i as FedAvg
    does. With λ = 0 these are FedAvg's.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      lam: ``λ`` in [0, 1], the weight of what h_i teaches.
      mu: ``μ`` in [0, 1], the share of h_i that stays, at most.
      momentum_rounds: Q, the rounds after which this share is reached; the paper takes all rounds.

    References:
      Li et al., "FedPHP: Federated Personalization with Inherited Private Models", ECML PKDD 2021,
      with MMD for the transfer of knowledge; widths of its kernel from PFLlib. Departures: Q is
      given, in the authors' code it is the rounds that a client is expected to take part in;
      gradients are not clipped, there they are.
    """
    at_most_one("fedphp", lam=lam, mu=mu)
    at_least_one("fedphp", momentum_rounds=momentum_rounds)
    single_head("fedphp", model)
    task_loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)

    def client_update(server, client, data, key):
        def taught_loss(params, batch, key):
            z, _, mask = labelled_features(model, params, batch)
            inherited, _, _ = labelled_features(model, client.params, batch)
            taught = discrepancy(z, inherited, mask)
            return (1 - lam) * task_loss(params, batch, key) + lam * taught

        update = update_of_received(taught_loss, tx, local_epochs, batch_size)
        output = update(server.params, client, data, key)
        # The first model, which nobody has trained, leaves nothing behind: m is 0 at first.
        kept = mu * jnp.minimum(client.rounds / momentum_rounds, 1)
        own = jax.tree.map(lambda h, w: kept * h + (1 - kept) * w, client.params, output.params)
        state = ClientState(own, optax.safe_increment(client.rounds))
        return output._replace(state=state, params=own)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: client.params,
        first_state=lambda params: ClientState(params, jnp.int32(0)),
    )
