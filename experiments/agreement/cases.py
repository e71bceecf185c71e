"""The algorithms that can be compared with PFLlib's, a few lines each."""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.agreement import personal_models
from experiments.agreement.departures import features, neighbours, training
from experiments.agreement.their_run import TheirRun
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
      round_start: the server's method that is called once as a round begins: after models were
        sent, if it sends.
      receive: ``(PFLlib's server) -> None``, gives clients what they would start the next round
        with, where the server has not done so at the start of a round.
      score: the client's method that gives the hits of its personal model first.
      departure: what PFLlib does differently, said of PFLlib.
      undo: puts what this library does in its place, while the context is open.
      undo_ours: what is left out on our side then, too.
    """

    theirs: str
    settings: Mapping[str, Any] = NOTHING
    fields: Mapping[str, Any] = NOTHING
    personal: Callable[[Any, Callable[[Any], Any]], Any] = personal_models.model
    round_start: str = "evaluate"
    receive: Callable[[Any], None] = personal_models.received_already
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
        undo=training.squared_norm,
    ),
    "fedrod": Case(
        "FedROD", personal=personal_models.two_heads,
        departure="personal heads start as copies of the first head, here at 0; classes are "
        "counted in full batches, here in all examples",
        undo=features.heads_of_zeros,
    ),
    "feddbe": Case(
        "FedDBE", {"kl_weight": 1.0, "momentum": 1.0}, {"kappa": 0.5}, personal_models.biased,
        departure="clients agree on mean features before the first round, here in it",
        undo=features.later_consensus,
    ),
    "fedproto": Case(
        "FedProto", {"lamda": 1.0}, {"lam": 1.0}, personal_models.nearest_prototype,
        departure="prototypes are means of features during training, and clients count equally; "
        "here they are made after it and weighted by examples",
        undo=features.prototypes_after_training,
    ),
    "fedcp": Case(
        "FedCP", {"lamda": 5.0}, {"lam": 5.0}, personal_models.gated,
        departure="the policy's noise is drawn in tests, too, the first context is random, and the "
        "policy's normalisation has gain and offset; noise is left out on both sides to undo it",
        undo=features.noiseless_policy, undo_ours=features.without_gumbel_noise,
    ),
    "apfl": Case(
        "APFL", {"alpha": 0.5}, {"alpha": 0.5}, personal_models.model_per,
        departure="the personal model descends along its own gradient, here along the mixture's, "
        "and becomes the mixture after each round; the global model is the same",
    ),
    "moon": Case("MOON", {"mu": 1.0, "tau": 0.5}, {"mu": 1.0, "tau": 0.5}),
    "fedphp": Case(
        "FedPHP", {"lamda": 0.1, "mu": 0.9, "global_rounds": 100},
        {"lam": 0.1, "mu": 0.9, "momentum_rounds": 100}, personal_models.model_p,
        round_start="select_clients", receive=personal_models.score_inherited,
    ),
    "fedntd": Case(
        "FedNTD", {"beta": 1.0, "tau": 1.0}, {"beta": 1.0, "tau": 1.0},
        departure="clients count equally, here by their examples",
        undo=training.weights_by_examples,
    ),
    "fml": Case(
        "FML", {"alpha": 0.5, "beta": 0.5}, {"alpha": 0.5, "beta": 0.5},
        departure="KL is divided by the number of classes, gradients go through the teacher, too, "
        "and are clipped; clients count equally, here by their examples",
        undo=training.teachers_fixed,
    ),
    "pfedme": Case(
        "pFedMe", {"beta": 1.0, "lamda": 15.0, "K": 5, "p_learning_rate": 0.01},
        {"beta": 1.0, "lam": 15.0, "inner_steps": 5, "personal_learning_rate": 0.01},
        personal_models.personalized, round_start="evaluate_personalized",
        score="test_metrics_personalized",
        departure="θ is not scored: its tensors are those of the received model; θ starts at the "
        "received model in every round, with a weight decay of 0.001; clients count by their "
        "examples, here equally",
        undo=training.personal_models_stay,
    ),
    "perfedavg": Case(
        "PerAvg", fields={"alpha": training.ALPHA}, round_start="evaluate_one_step",
        departure="two passes in a round, over batches of twice the size, cut in the middle, with "
        "one step size for both steps; here one pass, every other example of a batch, and α",
        undo=training.halves_of_a_batch,
    ),
    "fedala": Case(
        "FedALA", {"eta": 1.0, "layer_idx": 2}, {"weight_learning_rate": 1.0},
        round_start="send_models", receive=personal_models.mixture,
        departure="mixing weights are learnt on a random 80 % of the data, in the order of the "
        "file, and in the second round until the loss is steady; here for one epoch of the "
        "round's batches",
        undo=training.weights_learn_as_models,
    ),
    "fedamp": Case(
        "FedAMP", {"alphaK": 1.0, "lamda": 1.0, "sigma": 100.0},
        {"alpha": 1.0, "lam": 1.0, "sigma": 100.0},
        departure="the pull to the cloud model has no gradient, and clients go on from their own "
        "models: it is local training",
        undo=neighbours.pull_to_clouds,
    ),
    "fedcac": Case(
        "FedCAC", {"beta": 100, "tau": 0.5}, {"beta": 100.0, "tau": 0.5},
        departure="collaborators' models are made from the second round on; after the first one a "
        "client's critical parameters go back to the first model",
        undo=neighbours.collaborators_from_the_first_round,
    ),
    "fedgh": Case(
        "FedGH", {"server_learning_rate": 0.1}, {"server_learning_rate": 0.1},
        departure="the head is also trained with the first client's model, of which it is a part; "
        "its own steps take random batches of prototypes of all clients, which are means over "
        "full batches, here one step for each client, with means over all examples",
        undo=features.head_by_clients,
    ),
    "fedas": Case(
        "FedAS", receive=personal_models.received_body,
        departure="bodies are aligned in the first round, too, in batches of 16, to the sum over a "
        "batch's labels of their mean distances, here their mean over its examples; means of "
        "features and the trace are over full batches, here over all examples",
        undo=features.alignment_over_batches,
    ),
    "fedpac": Case(
        "FedPAC", {"lamda": 1.0}, {"lam": 1.0},
        departure="a client's α are used with the heads of other clients, as the list of clients "
        "is shuffled in between, and a head is replaced before the next client's is combined from "
        "it; small α are left out; features are of full batches, and clients' centroids count "
        "equally, here all by examples",
        undo=features.heads_in_order,
    ),
    "gpfl": Case(
        "GPFL", {"lamda": 0.01, "mu": 0.1}, {"lam": 0.01, "mu": 0.1}, personal_models.conditioned,
        departure="conditions are of the client's own last embeddings, and 0 in the first round; "
        "classes are counted in full batches, here in all examples; embeddings and valve start at "
        "random, and the valve's normalisation has gain and offset",
        undo=features.conditions_as_received,
    ),
    "fedfomo": Case(
        "FedFomo", {"M": 1_000_000}, {"held_out": neighbours.HELD_OUT},
        receive=personal_models.mixture_of_useful,
        departure="the last fifth of the data is held out, here every fifth example; batches come "
        "in the order of the file; gains are over the model before the last local steps, so that "
        "the client's trained model is one of the others",
        undo=neighbours.gains_over_own_model,
    ),
    "apple": Case(
        "APPLE", {"dr_learning_rate": 0.01, "mu": 0.1, "L": 1.0, "global_rounds": 20},
        {"share_learning_rate": 0.01, "mu": 0.1, "pull_rounds": 20},
        receive=personal_models.mixture_of_cores,
        departure="the personal model is sent, not the core model; a client has the new models of "
        "this round of those clients that come before it in the list; the step size is multiplied "
        "by the number of clients; gradients of p are means over parameters; p_0 is each client's "
        "share of the examples",
        undo=neighbours.cores_as_sent,
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
