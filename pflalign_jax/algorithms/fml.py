"""FML: a client's own model and the shared one learn from each other's predictions."""

import jax
import jax.numpy as jnp

from pflalign_jax.algorithms.two_models import two_models
from pflalign_jax.federated import Algorithm, local_tx
from pflalign_jax.federated.validation import at_most_one
from pflalign_jax.models import Model, example_losses
from pflalign_jax.models.base import labelled_logits, mean_of_real


def fml(
    model: Model,
    learning_rate: float = 0.1,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FML.

    With the predictions p of the copy w_i of the shared model and p_i of the own model v_i, a
    client descends on ``α F_i(v_i) + (1 - α) KL(p ‖ p_i)`` for v_i and on
    ``β F_i(w_i) + (1 - β) KL(p_i ‖ p)`` for w_i, on the same batches. The server averages w_i as
    FedAvg does. α = 1 is local training of v_i, β = 1 FedAvg of w.

    Args:
      model, learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      alpha: ``α`` in [0, 1], the weight of its labels for the client's own model.
      beta: ``β`` in [0, 1], the weight of the labels for the shared model.

    References:
      Shen et al., "Federated Mutual Learning", arXiv:2006.16765, Algorithm 1.
      Departure: both models have the same architecture.
    """
    at_most_one("fml", alpha=alpha, beta=beta)

    def loss(pair, batch, key):
        shared_key, own_key = jax.random.split(key)
        shared, y, mask = labelled_logits(model, pair.shared, batch, shared_key)
        own, _, _ = labelled_logits(model, pair.own, batch, own_key)

        def taught(weight, logits, teacher):
            # A teacher does not learn from how well it is understood.
            known = jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
            gap = jnp.sum(jnp.exp(known) * (known - jax.nn.log_softmax(logits)), axis=1)
            return weight * example_losses(logits, y) + (1 - weight) * gap

        return mean_of_real(taught(alpha, own, shared) + taught(beta, shared, own), mask)

    return two_models(
        lambda received, data: loss,
        local_tx(learning_rate, local_optimizer),
        personal=lambda pair: pair.own,
        local_epochs=local_epochs,
        batch_size=batch_size,
        classes_only="fml",
    )
