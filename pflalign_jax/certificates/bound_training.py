"""Local training that minimises a PAC-Bayes bound itself, over means and scales of a posterior."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.certificates.bounds import check_delta
from pflalign_jax.certificates.gaussians import Gaussian, draw, leaf_scales
from pflalign_jax.federated import ClientData, LocalResult, LocalTraining, Loss, local_training
from pflalign_jax.models import Batch, Model
from pflalign_jax.models.base import example_losses, mean_of_real


def bound_training(
    loss: Loss,
    tx: optax.GradientTransformation,
    local_epochs: int = 1,
    batch_size: int = 10,
    *,
    delta: float = 0.04,
    elementwise: bool = False,
) -> LocalTraining:
    r"""Return local training of a posterior on the quadratic form of the PAC-Bayes-kl bound.

    A step draws one model from the posterior (a new one for each step), and descends along the
    gradient, with respect to means and logarithms of scales, of

    $$\Big(\sqrt{\hat R + c} + \sqrt{c}\Big)^2, \quad
    c = \frac{\mathrm{KL} + \ln(2 \sqrt n / \delta)}{2 n},$$

    with $\hat R$ the loss of that model on the batch and n the client's examples. The value is an
    upper bound on the loss where $\hat R$ is the mean over the sample; certificates are not taken
    from it, but from the tighter `pac_bayes`.

    It is an ordinary `LocalTraining` whose parameters are a `Gaussian` in units of the prior: means
    are distances from the prior's in its standard deviations, scales are relative to its own. The
    prior itself is all zeros (`first_posterior`), and `in_parameters` gives the posterior of the
    model. So one step size suits all leaves, whatever their scales, and every optax transform goes
    with it, `align_transform` with a direction in the same units, too.

    Args:
      loss: with values in [0, 1], e.g. `bounded_cross_entropy`.
      tx, local_epochs, batch_size, elementwise: as in `local_training`.
      delta: of the bound, in (0, 1); matters little.

    Returns:
      A `LocalTraining` whose ``train`` takes one more keyword argument, ``prior``, a `Gaussian`
      that does not depend on the client's examples; what else it is given goes to ``tx``. Its
      metric ``loss`` is the mean of the objective.

    Raises:
      ValueError: for an argument out of range.

    References:
      Pérez-Ortiz, Rivasplata, Shawe-Taylor and Szepesvári, "Tighter risk certificates for neural
      networks", arXiv:2007.12911, the objective f_quad.
    """
    check_delta("bound_training", delta)

    def objective(
        posterior: Gaussian, batch: Batch, key: jax.Array, prior: Gaussian, size: jax.Array
    ) -> jax.Array:
        draw_key, loss_key = jax.random.split(key)
        risk = loss(draw(in_parameters(posterior, prior), draw_key), batch, loss_key)
        n = jnp.maximum(size, 1).astype(jnp.float32)  # a client without examples takes no step
        log_term = jnp.log(2 / delta) + 0.5 * jnp.log(n)
        c = (standard_kl(posterior) + log_term) / (2 * n)
        return jnp.square(jnp.sqrt(risk + c) + jnp.sqrt(c))

    # What the loop is without prior and size: it checks the arguments, and knows the steps.
    plain = local_training(loss, tx, local_epochs, batch_size)

    def train(
        params: Any,
        opt_state: Any,
        data: ClientData,
        key: jax.Array,
        *,
        prior: Gaussian,
        **extra: Any,
    ) -> LocalResult:
        of_client = functools.partial(objective, prior=prior, size=data.size)
        loop = local_training(of_client, tx, local_epochs, batch_size, elementwise=elementwise)
        return loop.train(params, opt_state, data, key, **extra)

    return LocalTraining(plain.num_steps, train)


def bounded_cross_entropy(model: Model, p_min: float = 1e-4) -> Loss:
    r"""Return ``loss(params, batch, key)``, a cross-entropy in [0, 1]: mean over real examples.

    A label's probability p counts as $p' = p_{min} + (1 - p_{min}) p$, and the loss is
    $\ln p' / \ln p_{min}$. A mixture and not the maximum of the two, so that examples that are far
    off have a gradient.

    Args:
      model: of a classification.
      p_min: in (0, 1).

    Raises:
      ValueError: if ``p_min`` is not in (0, 1).
    """
    if not 0 < p_min < 1:
        raise ValueError(f"bounded_cross_entropy: p_min={p_min} must be in (0, 1)")
    log_p_min, log_rest = math.log(p_min), math.log1p(-p_min)

    def loss(params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        del key
        # Not by train_apply: what is certified predicts with apply.
        log_p = -example_losses(model.apply(params, batch.x), batch.y)
        return mean_of_real(jnp.logaddexp(log_p_min, log_p + log_rest) / log_p_min, batch.mask)

    return loss


def gaussian_prior(params: Any, factor: float) -> Gaussian:
    """Return the prior around parameters, with the scales of `leaf_scales`, a scalar per leaf."""
    return Gaussian(params, jax.tree.map(jnp.log, leaf_scales(params, factor)))


def first_posterior(prior: Gaussian) -> Gaussian:
    """Return the prior as a posterior in units of the prior: zeros for each parameter."""
    zeros = jax.tree.map(jnp.zeros_like, prior.mean)
    return Gaussian(zeros, zeros)


def in_parameters(posterior: Gaussian, prior: Gaussian) -> Gaussian:
    """Return the posterior of the model from one in units of the prior (see `bound_training`)."""
    mean = jax.tree.map(lambda v, u, s: v + jnp.exp(s) * u, prior.mean, posterior.mean, prior[1])
    return Gaussian(mean, jax.tree.map(jnp.add, posterior.log_scale, prior.log_scale))


def standard_kl(posterior: Gaussian) -> jax.Array:
    """Return the KL divergence from the prior in nats, inside a program, to be differentiated.

    Args:
      posterior: in units of the prior, so that the prior is standard normal.
    """

    def of_leaf(u: jax.Array, rho: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.expm1(2 * rho) - 2 * rho + jnp.square(u))

    return jax.tree.reduce(jnp.add, jax.tree.map(of_leaf, *posterior))
