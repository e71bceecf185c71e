"""The scores of an evaluation of a run, its clients adapted with the step size that is to be."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from pflalign_jax.federated import ClientScores, FederationState, summarise
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.headline import headline_of
from pflalign_jax.runs.step_sizes import adapt_learning_rates


class Evaluation(NamedTuple):
    """What came of an evaluation.

    Attributes:
      scores: of all clients, by name.
      new: of new clients, by name; empty if there are none.
      adapt_learning_rate: step size of the adaptation; None: that of training.
    """

    scores: Mapping[str, ClientScores]
    new: Mapping[str, ClientScores]
    adapt_learning_rate: float | None


def scores_cohort(experiment: Experiment) -> bool:
    """Tell whether rounds score the models that their cohorts have trained, to be evaluated."""
    # If the cohort is everyone, nobody needs to train once more to be scored.
    return experiment.federation.everyone and not adapt_learning_rates(experiment.config)


def evaluate(
    experiment: Experiment, state: FederationState, trained: Mapping[str, ClientScores]
) -> Evaluation:
    """Score all clients, and new ones.

    Args:
      experiment: that is run.
      state: of its federation.
      trained: scores of the cohort's models, where the round has scored them.
    """
    federation = experiment.federation
    rate, values = None, {}
    if rates := adapt_learning_rates(experiment.config):
        name = federation.algorithm.adapts_with
        tried = {rate: federation.evaluate(state, adapt=True, **{name: rate}) for rate in rates}
        rate = max(tried, key=lambda rate: _merit(experiment, tried[rate]))
        scores, values = tried[rate], {name: rate}
    else:
        scores = federation.evaluate(state, adapt=not scores_cohort(experiment)) | dict(trained)
    has_new = experiment.dataset.new_clients is not None
    return Evaluation(
        scores, federation.evaluate_new(state, adapt=True, **values) if has_new else {}, rate
    )


def _merit(experiment: Experiment, scores: Mapping[str, ClientScores]) -> float:
    """Return how good adapted models are on validation; more is better."""
    headline = headline_of(experiment.federation.task)
    value = summarise(scores).get(headline.key("validation"), math.nan)
    return headline.merit(value) if math.isfinite(value) else -math.inf
