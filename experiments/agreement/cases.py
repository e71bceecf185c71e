"""The algorithms that can be compared with PFLlib's, a few lines each."""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.agreement import departures, personal_models
from experiments.agreement.departures import TheirRun
from pflalign_jax.cli.command import FlagError
from pflalign_jax.runs.config_checks import nearest

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """An algorithm of both sides.

    Attributes:
      theirs: what PFLlib calls it with ``--algorithm``.
      settings: of PFLlib's command line.
      fields: our hyperparameters of the same meaning.
      personal: ``(PFLlib's client, params) -> tree``, its personal model in the form of ours;
        ``params`` makes our parameters of a PyTorch module.
      evaluation: the server's method that is called once, as a round begins.
      score: the client's method that gives the hits of its personal model first.
      departure: what PFLlib does differently, said of PFLlib.
      undo: puts what this library does in its place, while the context is open.
      undo_ours: what is left out on our side then, too.
    """

    theirs: str
    settings: Mapping[str, Any] = NOTHING
    fields: Mapping[str, Any] = NOTHING
    personal: Callable[[Any, Callable[[Any], Any]], Any] = personal_models.model
    evaluation: str = "evaluate"
    score: str = "test_metrics"
    departure: str = ""
    undo: Callable[[TheirRun], contextlib.AbstractContextManager] | None = None
    undo_ours: Callable[[], contextlib.AbstractContextManager] | None = None


CASES: dict[str, Case] = {
    "fedavg": Case("FedAvg"),
    "local": Case("Local"),
    "fedprox": Case("FedProx", {"mu": 0.1}, {"mu": 0.1}),
    "ditto": Case(
        "Ditto", {"mu": 0.1}, {"lam": 0.1}, personal_models.model_per,
        score="test_metrics_personalized",
    ),
    "fedper": Case("FedPer"),
    "fedrep": Case("FedRep", {"plocal_epochs": 1}, {"head_epochs": 1}),
    "fedbabu": Case("FedBABU"),
    "lgfedavg": Case("LG-FedAvg"),
    "scaffold": Case("SCAFFOLD"),
    "feddyn": Case(
        "FedDyn", {"alpha": 0.1}, {"alpha": 0.1},
        departure="the pull to the global model is α/2 ‖w_i - w‖, not its square",
        undo=departures.squared_norm,
    ),
    "fedrod": Case(
        "FedROD", personal=personal_models.two_heads,
        departure="personal heads start as copies of the first head, here at 0; classes are "
        "counted in full batches, here in all examples",
        undo=departures.heads_of_zeros,
    ),
    "feddbe": Case(
        "FedDBE", {"kl_weight": 1.0, "momentum": 1.0}, {"kappa": 0.5}, personal_models.biased,
        departure="clients agree on mean features before the first round, here in it",
        undo=departures.later_consensus,
    ),
    "fedproto": Case(
        "FedProto", {"lamda": 1.0}, {"lam": 1.0}, personal_models.nearest_prototype,
        departure="prototypes are means of features during training, and clients count equally; "
        "here they are made after it and weighted by examples",
        undo=departures.prototypes_after_training,
    ),
    "fedcp": Case(
        "FedCP", {"lamda": 5.0}, {"lam": 5.0}, personal_models.gated,
        departure="the policy's noise is drawn in tests, too, the first context is random, and the "
        "policy's normalisation has gain and offset; noise is left out on both sides to undo it",
        undo=departures.noiseless_policy, undo_ours=departures.without_gumbel_noise,
    ),
    "apfl": Case(
        "APFL", {"alpha": 0.5}, {"alpha": 0.5}, personal_models.model_per,
        departure="the personal model descends along its own gradient, here along the mixture's, "
        "and becomes the mixture after each round; the global model is the same",
    ),
}  # fmt: skip
"""What ``--algorithm`` can be, by the name of our algorithm."""


def chosen_names(given: list[str]) -> list[str]:
    """Return the algorithms that ``--algorithm`` means.

    Raises:
      FlagError: for one that cannot be compared.
    """
    names = list(CASES) if given == ["all"] else given
    for name in names:
        if name not in CASES:
            raise FlagError(
                f"--algorithm={name} cannot be compared{nearest(name, CASES)}; docs/agreement.md "
                "says how an algorithm is added"
            )
    return names
