"""GPFL: one body learns global and personal features, told apart by conditional inputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import models
from pflalign_jax.federated import Algorithm, ClientOutput, class_counts, local_training, local_tx
from pflalign_jax.federated.validation import nonnegative
from pflalign_jax.models.base import dense, labelled_features, mean_of_real, single_head


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


class Trained(NamedTuple):
    """What a client trains: body and own head, class embeddings, valve."""

    model: Any
    classes: jax.Array
    valve: Any


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
    local_optimizer: str = "sgd",
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
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_classes: C, the number of labels.
      lam: ``λ``, the pull of global features to the received embeddings; the authors take 0.01, for
        ResNet and fastText 0.0001.
      mu: ``μ``, the weight decay of embeddings and valve; the authors take 0.1, for ResNet and
        fastText 0, for the HAR CNN 1.

    References:
      Zhang et al., "GPFL: Simultaneously Learning Global and Personalized Feature Information for
      Personalized Federated Learning", arXiv:2308.10279, Algorithm 1; the norm is that of the
      whole batch, as in the authors' code. Departures: conditional inputs come from the received
      embeddings, not from the client's last ones; layer normalisation has no gain and offset;
      all runs have the same first embeddings and valve, its weights LeCun's, its biases 0.
    """
    nonnegative("gpfl", lam=lam, mu=mu)
    head = single_head("gpfl", model)
    decayed = Trained(model=False, classes=True, valve=True)  # type: ignore[arg-type]
    tx = optax.chain(
        optax.masked(optax.add_decayed_weights(mu), decayed),
        local_tx(learning_rate, local_optimizer),
    )

    def body_of(params):
        return {name: layer for name, layer in params.items() if name != head}

    def personal_model(server, client):
        with_own_head = {**server.body, head: client.head}
        return Conditioned(with_own_head, server.valve, client.shares @ server.classes)

    def client_update(server, client, data, key):
        # Of the data at hand, so that a client has its condition from its first step on.
        counts = class_counts(data, num_classes)
        shares = counts / jnp.maximum(counts.sum(), 1)
        start = personal_model(server, ClientState(client.head, shares))

        def loss(trained, batch, key):
            params, classes, valve = trained
            z, y, mask = labelled_features(model, params, batch)
            personal_z = _through_valve(valve, z, start.condition)
            # Both conditions are of the received embeddings: they stay for the whole round.
            global_z = _through_valve(valve, z, server.classes.mean(0))
            losses = models.example_losses(dense(params[head], personal_z), y)
            losses += models.example_losses(_unit(global_z) @ _unit(classes).T, y)
            gaps = (global_z - server.classes[y]) * mask[:, None]
            distance = jnp.sqrt(jnp.sum(gaps**2) + 1e-12)  # a root has no gradient at 0
            return mean_of_real(losses, mask) + lam * distance

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        trained = Trained(start.model, server.classes, server.valve)
        result = local.train(trained, tx.init(trained), data, key)
        params, classes, valve = result.params
        return ClientOutput(
            message=optax.tree.sub(ServerState(body_of(params), classes, valve), server),
            state=ClientState(params[head], shares),
            params=start._replace(model=params, valve=valve),
            steps=result.steps,
            metrics=result.metrics,
        )

    def predict(conditioned, x):
        params, valve, condition = conditioned
        z = model.features(params, x)
        passed = _through_valve(valve, z.reshape(-1, z.shape[-1]), condition)
        return dense(params[head], passed).reshape(*z.shape[:-1], -1)

    def init(params, key):
        classes, valve = _first_embeddings(num_classes, params[head]["kernel"].shape[0])
        client = ClientState(params[head], shares=jnp.full(num_classes, 1 / num_classes))
        return ServerState(body_of(params), classes, valve), client

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=lambda server, aggregate: optax.apply_updates(server, aggregate.value),
        personal_params=lambda server, client, data: personal_model(server, client),
        global_params=None,
        predict=predict,
        classes_only="gpfl",
    )


def _first_embeddings(num_classes, width):
    """Return the first embeddings of classes, [C, F], and the first valve."""
    # Keys of their own, not the run's: these first weights are the same in all runs.
    gain_key, offset_key, classes_key = jax.random.split(jax.random.key(0), 3)
    valve = {"gain": _first_layer(gain_key, width), "offset": _first_layer(offset_key, width)}
    return jax.random.normal(classes_key, (num_classes, width)), valve


def _unit(vectors):
    """Return ``[N, F]`` vectors of norm 1; zeros stay zeros."""
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=1, keepdims=True) + 1e-12)


def _through_valve(valve, z, condition):
    """Return ``[N, F]`` features as a conditional input ``[F]`` lets them pass."""
    gain, offset = (
        jax.nn.standardize(jax.nn.relu(dense(valve[name], condition)))
        for name in ("gain", "offset")
    )
    return jax.nn.relu(z * (1 + gain)[None] + offset[None])


def _first_layer(key, width):
    kernel = jax.nn.initializers.lecun_normal()(key, (width, width))
    return {"kernel": kernel, "bias": jnp.zeros(width)}
