"""Certificates for the clients of a federation, on its devices; refused where they do not hold."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from pflalign_jax.certificates.bound_training import bound_training, bounded_cross_entropy
from pflalign_jax.certificates.bounds import check_delta
from pflalign_jax.certificates.certificate import (
    DRAWS_SHARE,
    HOLDOUT,
    PAC_BAYES,
    Certificate,
    best_of,
    holdout,
    pac_bayes,
    pooled_holdout,
    pooled_pac_bayes,
)
from pflalign_jax.certificates.client_risks import (
    BoundedLoss,
    Measuring,
    Risks,
    model_risks,
    place,
    posterior_risks,
)
from pflalign_jax.certificates.gaussians import Gaussian, gaussian_kl
from pflalign_jax.certificates.validity import CertificateError, Question, bound_sample, check_valid
from pflalign_jax.federated import Federation, FederationState
from pflalign_jax.federated.validation import at_least_one
from pflalign_jax.models import Model
from pflalign_jax.models.base import example_hits
from pflalign_jax.random_purposes import CERTIFY


class Certified(NamedTuple):
    """Certificates of clients, of each alone and of all together.

    Attributes:
      names: ``[K]`` names of the clients.
      clients: a `Certificate` with arrays ``[K]``; a client without an example in the bound sample
        has ``n = 0`` and the bound 1.
      pooled: of the clients' mean loss, weighted by the examples of their bound samples.
      test: ``[K]`` mean test loss of what is certified; NaN for a client without test examples. It
        is in no bound.
      test_examples: ``[K]``.
      scales: ``[K]`` factors of the prior's scales that gave the lowest bounds; NaN of models.
    """

    names: np.ndarray
    clients: Certificate
    pooled: Certificate
    test: np.ndarray
    test_examples: np.ndarray
    scales: np.ndarray


def zero_one_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return 1 for a wrong and 0 for a right prediction, ``[B]``; of sequences the wrong share."""
    return 1 - example_hits(outputs, y)


def certify(
    federation: Federation,
    state: FederationState,
    clients: str = "new",
    kind: str = "pac_bayes",
    *,
    model: str | None = None,
    split: str | None = None,
    scales: Sequence[float] = (0.5,),
    delta: float = 0.05,
    loss: BoundedLoss | None = None,
    tx: optax.GradientTransformation | None = None,
    local_epochs: int = 100,
    batch_size: int = 50,
    draws: int = 4,
) -> Certified:
    """Certify what the models of clients do on examples like theirs; changes nothing.

    Args:
      federation, state: of a run, whose models they are.
      clients: ``"new"``, the dataset's new clients, or ``"train"``.
      kind: ``"pac_bayes"``, of a randomised predictor around a model, or ``"holdout"``, of a model
        itself.
      model: which one. ``"received"``: as a round starts with it; ``"adapted"``: after its local
        steps; for PAC-Bayes ``"laplace"``, an experiment: the adapted one, with scales by `laplace`
        from the second moments that the algorithm keeps; or ``"bound"``: trained from the received
        one on the bound itself with `bound_training`, mean and scales. None: ``"bound"``, for
        held-out bounds ``"adapted"``.
      split: the bound sample. ``"bound"``: what ``bound_fraction`` keeps; or a split of the
        dataset, or ``"all"`` but the test examples, where that is valid. None: ``"all"`` for
        PAC-Bayes and new clients, else ``"bound"``.
      scales: G factors of the prior's scales, of which each client takes the best; each costs a
        part of delta (``delta / G``). A factor that was chosen on other clients is free.
      delta: the probability with which a bound may be too low.
      loss: ``(outputs, y) -> [B]`` in [0, 1]; None: `zero_one_loss`.
      tx: optimiser of bound training, in units of the prior; None: Adam with a step size of 0.02.
      local_epochs, batch_size: of bound training.
      draws: models drawn for each example of the bound sample.

    Raises:
      CertificateError: by name, where the certificate would not hold; see `check_valid`.
      ValueError: for an argument out of range.
    """
    check_delta("certify", delta)
    at_least_one("certify", draws=draws, local_epochs=local_epochs, batch_size=batch_size)
    if not scales or not all(0 < factor < np.inf for factor in scales):
        raise ValueError(f"certify: scales={scales} is not allowed; give numbers > 0")
    question = Question(clients, kind, model, split).filled()
    why_valid = check_valid(federation, question, loss is not None)
    dataset = federation.dataset if clients == "train" else federation.dataset.new_clients
    assert dataset is not None
    sample, test = bound_sample(dataset, question.split), bound_sample(dataset, "test")
    if question.split == "test":
        test = sample._replace(indices=sample.indices[:0], offsets=np.zeros_like(sample.offsets))
    tx = optax.adam(0.02) if tx is None else tx
    training = None
    if question.model == "bound":
        of_training = functools.partial(bound_training, tx=tx, delta=(1 - DRAWS_SHARE) * delta)
        training = of_training(
            bounded_cross_entropy(_predicting(federation)),
            local_epochs=local_epochs,
            batch_size=batch_size,
        )
    measuring = Measuring(
        apply=_predicting(federation).apply,
        loss=zero_one_loss if loss is None else loss,
        mesh=federation.mesh,
        client_chunk=federation.client_chunk,
        frozen=federation.model.frozen,
        training=training,
        tx=tx,
        draws=draws,
    )
    placed = place(dataset, sample, test, federation.mesh, federation.client_chunk)
    models = functools.partial(federation.all_params, state, clients)
    # A new client's received model must not have seen even its training examples.
    received = "unseen" if clients == "new" else "received"
    options: dict[str, Any] = {"why_valid": why_valid}
    found = []
    if kind == HOLDOUT:
        params = models("adapted" if question.model == "adapted" else received)
        risks = model_risks(measuring, placed)(federation._weights, params)
        options["zero_one"] = loss is None and dataset.y.ndim == 1
        found.append(_held_out(risks, sample.sizes, delta, options))
    else:
        prior = models(received)
        _refuse_unfit(dataset.client_names, prior)
        mean = models("adapted") if question.model in ("adapted", "laplace") else prior
        fisher = models("fisher") if question.model == "laplace" else None
        measure = posterior_risks(measuring, placed)
        key = jax.random.fold_in(state.key, CERTIFY)
        options["draws"] = draws
        for factor in scales:
            risks = measure(federation._weights, key, factor, prior, mean, fisher)
            found.append(_randomised(risks, sample.sizes, delta / len(scales), options))
    return _gathered(dataset.client_names, found, sample.sizes, test.sizes, scales, kind)


class _Found(NamedTuple):
    """Certificates for one scale of the prior: of clients with examples, and pooled."""

    clients: Certificate
    pooled: Certificate
    test: Any


def _predicting(federation: Federation) -> Model:
    """Return the model whose ``apply`` is that of personal models, which may have more parts."""
    apply = federation.algorithm.predict or federation.model.apply
    return federation.model._replace(apply=apply)


def _refuse_unfit(names: np.ndarray, params: Any) -> None:
    """Raise an error if a client's model has a value that is not finite, or no float."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.issubdtype(leaf.dtype, np.floating):
            raise CertificateError(
                f"models have {leaf.dtype} at {jax.tree_util.keystr(path)}, around which no "
                "Gaussian can be drawn; ask for kind='holdout'"
            )
    finite = [np.isfinite(a).reshape(len(names), -1).all(1) for a in jax.tree.leaves(params)]
    bad = np.flatnonzero(~np.all(finite, axis=0))
    if len(bad):
        raise CertificateError(
            f"{len(bad)} clients receive models that are not finite, the first is "
            f"{str(names[bad[0]])!r}; there is no prior around them"
        )


def _held_out(risks: Risks, sizes: np.ndarray, delta: float, options: dict[str, Any]) -> _Found:
    """Return held-out certificates from sums of losses."""
    some = sizes > 0
    losses, n = np.asarray(risks.sample, float)[some], sizes[some]
    pooled = pooled_holdout(losses, n, delta, **options)
    return _Found(holdout(losses, n, delta, **options), pooled, risks.test)


def _randomised(risks: Risks, sizes: np.ndarray, delta: float, options: dict[str, Any]) -> _Found:
    """Return PAC-Bayes certificates from posteriors and sums of losses."""
    some = np.flatnonzero(sizes > 0)
    n, draws = sizes[some], options["draws"]
    kl = np.array([_kl(risks, int(k)) for k in some])
    # A sum of 0/1 losses is exact; one of others may be rounded, but a mean is at most 1.
    mean = np.minimum(np.asarray(risks.sample, float)[some] / (n * draws), 1.0)
    pooled = pooled_pac_bayes(mean, kl, n, delta, **options)
    return _Found(pac_bayes(mean, kl, n, delta, **options), pooled, risks.test)


def _kl(risks: Risks, k: int) -> float:
    """Return the divergence of client k's posterior from its prior, in float64."""
    posterior, prior = jax.tree.map(lambda a: a[k], (risks.posterior, risks.prior))
    scale = jax.tree.map(lambda s: np.exp(np.asarray(s, np.float64)), prior.log_scale)
    return gaussian_kl(Gaussian(*posterior), prior.mean, scale)


def _gathered(
    names: np.ndarray,
    found: Sequence[_Found],
    sizes: np.ndarray,
    test_sizes: np.ndarray,
    scales: Sequence[float],
    kind: str,
) -> Certified:
    """Return the best certificate of every client, also of those without examples."""
    some, bounds = sizes > 0, np.stack([each.clients.bound for each in found])
    best = np.zeros(len(sizes), int)
    best[some] = np.argmin(bounds, axis=0)
    clients = best_of([each.clients for each in found])

    def all_clients(values: np.ndarray, missing: float) -> np.ndarray:
        whole = np.full(len(sizes), missing, np.asarray(values).dtype)
        whole[some] = values
        return whole

    clients = clients._replace(
        bound=all_clients(clients.bound, 1.0),
        empirical=all_clients(clients.empirical, np.nan),
        kl=all_clients(clients.kl, 0.0),
        n=sizes.copy(),
    )
    test = np.full(len(sizes), np.nan)
    if np.any(test_sizes):
        sums = np.stack([np.asarray(each.test, float) for each in found])
        sums = np.take_along_axis(sums, best[None], axis=0)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            test = np.where(test_sizes > 0, sums / test_sizes, np.nan)
    chosen = np.asarray(scales, float)[best] if kind == PAC_BAYES else np.full(len(sizes), np.nan)
    pooled = best_of([each.pooled for each in found])
    return Certified(names, clients, pooled, test, test_sizes.copy(), chosen)
