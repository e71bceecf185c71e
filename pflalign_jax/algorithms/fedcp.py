"""FedCP: a conditional policy splits every example's features between two heads."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import models
from pflalign_jax.federated import Algorithm, ClientOutput, local_training, local_tx
from pflalign_jax.federated.validation import nonnegative
from pflalign_jax.models.base import dense, labelled_features, mean_of_real, single_head


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      model: the global model; its head is frozen while clients train.
      policy: the conditional policy network, one dense layer from F to 2F.
    """

    model: Any
    policy: Any


class ClientState(NamedTuple):
    """The personal head."""

    head: Any


class Gated(NamedTuple):
    """A personal model.

    Attributes:
      model: body and personal head.
      policy: as above.
      head: the frozen global head.
      context: ``[F]``, the personal head's sum over classes at the round's start, of norm 1.
    """

    model: Any
    policy: Any
    head: Any
    context: jax.Array


def fedcp(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    lam: float = 5.0,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedCP.

    With features z and ``(a, b) = policy(z ⊙ context)``, positive and of sum 1 in each coordinate,
    a model predicts ``H_i(a ⊙ z) + H(b ⊙ z)``. A client trains body, own head H_i and policy by SGD
    on the cross-entropy plus ``λ MMD(z, z₀)`` to the received body's features z₀, with the global
    head H frozen. The server averages bodies, policies, and ``(H_i + H) / 2``.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      lam: ``λ``, the pull to the received body's features; the paper takes 5.

    References:
      Zhang et al., "FedCP: Separating Feature Information for Personalized Federated Learning via
      Conditional Policy", arXiv:2307.01217, Algorithm 1; widths of the MMD's kernel from the
      authors' code. Departures: the Gumbel noise of the policy is left out when a model is scored;
      the first context is the first head's, not random; the
      policy's layer normalisation has no gain and offset, its first weights are LeCun's and the
      same in all runs.
    """
    nonnegative("fedcp", lam=lam)
    head = single_head("fedcp", model)
    tx = local_tx(learning_rate, local_optimizer)

    def logits(gated, z, noise=0.0):
        """Return ``[N, C]`` logits of ``[N, F]`` features."""
        hidden = dense(gated.policy, z * gated.context[None])
        hidden = jax.nn.relu(jax.nn.standardize(hidden))
        # Over each pair: what one head is given of a feature, the other is not.
        split = jax.nn.softmax(hidden.reshape(*z.shape[:-1], 2, -1) + noise, axis=-2)
        personal = dense(gated.model[head], z * split[..., 0, :])
        return personal + dense(gated.head, z * split[..., 1, :])

    def personal_model(server, client):
        # What the personal head looks at, over all classes.
        context = client.head["kernel"].sum(1)
        context /= jnp.maximum(jnp.linalg.norm(context), 1e-12)  # a head of zeros has no direction
        with_own_head = {**server.model, head: client.head}
        return Gated(with_own_head, server.policy, server.model[head], context)

    def client_update(server, client, data, key):
        start = personal_model(server, client)

        def loss(trained, batch, key):
            params, policy = trained
            z, y, mask = labelled_features(model, params, batch)
            received_z, _, _ = labelled_features(model, start.model, batch)
            # Gumbel noise on both of a pair: the split is a softened draw between the heads.
            noise = jax.random.gumbel(key, (*z.shape[:-1], 2, z.shape[-1]))
            gated = start._replace(model=params, policy=policy)
            losses = models.example_losses(logits(gated, z, noise), y)
            return mean_of_real(losses, mask) + lam * discrepancy(z, received_z, mask)

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        trained = (start.model, start.policy)
        result = local.train(trained, tx.init(trained), data, key)
        params, policy = result.params
        # The next global head has learnt half of what the personal one has.
        middle_head = jax.tree.map(lambda a, b: (a + b) / 2, params[head], start.head)
        sent = ServerState({**params, head: middle_head}, policy)
        return ClientOutput(
            message=optax.tree.sub(sent, server),
            state=ClientState(params[head]),
            params=start._replace(model=params, policy=policy),
            steps=result.steps,
            metrics=result.metrics,
        )

    def predict(gated, x):
        z = model.features(gated.model, x)
        return logits(gated, z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)

    def init(params, key):
        width = params[head]["kernel"].shape[0]
        # A key of its own, not the run's: these first weights are the same in all runs.
        kernel = jax.nn.initializers.lecun_normal()(jax.random.key(0), (width, 2 * width))
        policy = {"kernel": kernel, "bias": jnp.zeros(2 * width)}
        return ServerState(params, policy), ClientState(params[head])

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=lambda server, aggregate: optax.apply_updates(server, aggregate.value),
        personal_params=lambda server, client, data: personal_model(server, client),
        global_params=None,
        predict=predict,
        classes_only="fedcp",
    )


def discrepancy(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the squared maximum mean discrepancy of ``[N, F]`` features, a scalar."""
    pairs = mask[:, None] * mask[None, :] / jnp.maximum(mask.sum(), 1) ** 2

    def mean_kernel(x, y):
        # ‖x - y‖² multiplied out: no [N, N, F] array of differences.
        distances = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None] - 2 * x @ y.T
        return sum(jnp.sum(pairs * jnp.exp(-0.5 * distances / s)) for s in (10, 15, 20, 50))

    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
