"""GPFL: one body learns global and personal features, told apart by conditional inputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import models
from pflalign_jax.federated import Algorithm, ClientOutput, label_counts, local_sgd, local_training
from pflalign_jax.federated.validation import nonnegative


class ServerState(NamedTuple):
    """What all clients share.

    Attributes:
      body: the model without its head.
      classes: ``[C, F]``, the embedding of each class (GCE).
      valve: two dense layers, ``gain`` and ``offset``, from F to F (CoV).
    """

    body: Any
    classes: jax.Array
    valve: Any


class ClientState(NamedTuple):
    """What stays with a client.

    Attributes:
      head: its own head.
      shares: ``[C]``, its shares of the classes; equal ones before its first round.
    """

    head: Any
    shares: jax.Array


class Conditioned(NamedTuple):
    """A personal model: body and own head, valve, and the personal conditional input ``[F]``."""

    model: Any
    valve: Any
    condition: jax.Array


def gpfl(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    num_classes: int,
    lam: float = 0.01,
    mu: float = 0.1,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return GPFL.

    The valve turns features z into ``relu((1 + γ) ⊙ z + β)`` with γ, β from a conditional input:
    z_P with the mean of the class embeddings e_c weighted by the client's shares, z_G with their
    plain mean. A client trains everything by SGD on the cross-entropy of ``head(z_P)``, plus that
    of the cosines of z_G to e, plus ``λ ‖z_G - ē_y‖`` to the received embeddings ē, with weight
    decay μ on embeddings and valve. Heads stay; the server averages the rest.

    Args:
      model: one with a single dense head.
      learning_rate, local_epochs, batch_size: as in `fedavg`.
      num_classes: C.
      lam: ``λ``; the authors take 0.01, for ResNet and fastText 0.0001.
      mu: ``μ``; the authors take 0.1, for ResNet and fastText 0, for the HAR CNN 1.

    References:
      Zhang et al., "GPFL: Simultaneously Learning Global and Personalized Feature Information for
      Personalized Federated Learning", arXiv:2308.10279, Algorithm 1; the norm is that of the
      whole batch, as in the authors' code. Departures: conditional inputs come from the received
      embeddings, not from the client's last ones; layer normalisation has no gain and offset;
      the valve's first weights are LeCun's, its biases 0, and the same in all runs, as are the
      first embeddings.
    """
    nonnegative("gpfl", lam=lam, mu=mu)
    head = models.single_head("gpfl", model)
    tx = optax.chain(
        optax.masked(optax.add_decayed_weights(mu), (False, True, True)), local_sgd(learning_rate)
    )

    def opened(valve, z, condition):
        gain, offset = (
            jax.nn.standardize(jax.nn.relu(models.dense(valve[name], condition)))
            for name in ("gain", "offset")
        )
        return jax.nn.relu(z * (1 + gain)[None] + offset[None])

    def personal(server, client, data=None):
        del data
        own = {**server.body, head: client.head}
        return Conditioned(own, server.valve, client.shares @ server.classes)

    def client_update(server, client, data, key):
        counts = label_counts(data, num_classes)
        shares = counts / jnp.maximum(counts.sum(), 1)
        start = personal(server, ClientState(client.head, shares))

        def loss(trained, batch, key):
            del key
            params, classes, valve = trained
            z, y, mask = models.labelled_features(model, params, batch)
            own = models.dense(params[head], opened(valve, z, start.condition))
            z = opened(valve, z, server.classes.mean(0))
            cosines = _unit(z) @ _unit(classes).T
            losses = models.example_losses(own, y) + models.example_losses(cosines, y)
            apart = (z - server.classes[y]) * mask[:, None]
            far = jnp.sqrt(jnp.sum(apart**2) + 1e-12)
            return models.mean_of_real(losses, mask) + lam * far

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        given = (start.model, server.classes, server.valve)
        result = local.train(given, tx.init(given), data, key)
        params, classes, valve = result.params
        body = {name: layer for name, layer in params.items() if name != head}
        return ClientOutput(
            optax.tree.sub(ServerState(body, classes, valve), server),
            ClientState(params[head], shares),
            Conditioned(params, valve, start.condition),
            result.steps,
            result.metrics,
        )

    def predict(params, x):
        z = model.features(params.model, x)
        rows = opened(params.valve, z.reshape(-1, z.shape[-1]), params.condition)
        return models.dense(params.model[head], rows).reshape(*z.shape[:-1], -1)

    def init(params, key):
        del key
        width, keys = params[head]["kernel"].shape[0], jax.random.split(jax.random.key(0), 3)
        body = {name: layer for name, layer in params.items() if name != head}
        normal = jax.nn.initializers.lecun_normal()
        valve = {
            name: {"kernel": normal(k, (width, width)), "bias": jnp.zeros(width)}
            for name, k in zip(("gain", "offset"), keys, strict=False)
        }
        classes = jax.random.normal(keys[2], (num_classes, width))
        shares = jnp.full(num_classes, 1 / num_classes)
        return ServerState(body, classes, valve), ClientState(params[head], shares)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=lambda server, aggregate: optax.apply_updates(server, aggregate.value),
        personal_params=personal,
        global_params=None,
        predict=predict,
    )


def _unit(rows):
    """Return rows of norm 1."""
    return rows / jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True) + 1e-12)
