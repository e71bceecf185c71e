"""The section ``messages`` of a config: what happens to what clients send.

In this order: clients clip, compress or add noise; corrupted clients attack; the server defends
itself, by robust aggregation or by a differentially private mean.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, cast

from ml_collections import ConfigDict, FieldReference

from pflalign_jax import messages
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Algorithm, Participation
from pflalign_jax.runs.config_checks import ConfigError, checked, one_of

COMPRESSIONS = ("top_k", "int8", "low_rank")
ATTACKS = ("label_flip", "sign_flip", "scaled_update")
RULES = ("coordinate_median", "trimmed_mean", "norm_bound")


class MessageField(NamedTuple):
    """A field of the section; None, the default of all, leaves out what it is for.

    Attributes:
      type: of its values.
      meaning: a text, or the function and the argument whose text it has.
    """

    type: Any
    meaning: str | tuple[Callable, str]


FIELDS = {
    "clip": MessageField(float, (messages.clip, "max_norm")),
    "compression": MessageField(str, f"how clients compress: {', '.join(COMPRESSIONS)}"),
    "fraction": MessageField(float, (messages.top_k, "fraction")),
    "rank": MessageField(int, (messages.low_rank, "rank")),
    "error_feedback": MessageField(bool, (messages.top_k, "error_feedback")),
    "local_noise": MessageField(float, (messages.gaussian_noise, "std")),
    "attack": MessageField(str, f"what corrupted clients do: {', '.join(ATTACKS)}"),
    "corrupted": MessageField(int, (messages.corrupted_clients, "count")),
    "attack_factor": MessageField(
        float,
        "sign_flip: messages times minus this, None = 1; scaled_update: times this, None = 10",
    ),
    "robust": MessageField(str, f"instead of the mean of messages: {', '.join(RULES)}"),
    "trim": MessageField(float, (messages.trimmed_mean, "share")),
    "max_norm": MessageField(float, (messages.norm_bound, "max_norm")),
    "private_clip": MessageField(float, (messages.private_mean, "clip_norm")),
    "noise_multiplier": MessageField(float, (messages.private_mean, "noise_multiplier")),
    "delta": MessageField(
        float,
        "probability delta at which epsilon is reported, in (0, 1); None = 1e-5, or 0.1 / clients "
        "if that is less",
    ),
}

BELONGS = {
    "fraction": ("compression", ("top_k",)),
    "rank": ("compression", ("low_rank",)),
    "error_feedback": ("compression", COMPRESSIONS),
    "corrupted": ("attack", ATTACKS),
    "attack_factor": ("attack", ("sign_flip", "scaled_update")),
    "trim": ("robust", ("trimmed_mean",)),
    "max_norm": ("robust", ("norm_bound",)),
}
"""Fields that only mean something with certain values of another."""

NEEDS = {
    ("compression", "top_k"): "fraction",
    ("compression", "low_rank"): "rank",
    ("robust", "trimmed_mean"): "trim",
    ("robust", "norm_bound"): "max_norm",
    **{("attack", attack): "corrupted" for attack in ATTACKS},
}
"""Values that mean nothing without another field."""


def default_section() -> ConfigDict:
    """Return the section with every field at None."""
    return ConfigDict({name: FieldReference(None, field_type=object) for name in FIELDS})


def resolve_section(section: ConfigDict) -> ConfigDict:
    """Check the section's fields, alone and together.

    Raises:
      ConfigError: for an unknown name, a wrong type, a field that is missing or does not go with
        the others.
    """
    fields = {k: checked(f"messages.{k}", section[k], f.type | None) for k, f in FIELDS.items()}
    for name, choices in (("compression", COMPRESSIONS), ("attack", ATTACKS), ("robust", RULES)):
        if fields[name] is not None:
            one_of(f"messages.{name}", fields[name], choices)
    given = {name for name, value in fields.items() if value is not None}

    def refuse(name: str, reason: str) -> NoReturn:
        raise ConfigError(f"config.messages.{name}={fields[name]!r} {reason}")

    # Fields that are set without the field that they belong to, and the other way round.
    for name in given & set(BELONGS):
        other, values = BELONGS[name]
        if fields[other] not in values:
            refuse(name, f"does not go with {other}={fields[other]!r}, only with {values}")
    for (name, value), needed in NEEDS.items():
        if fields[name] == value and needed not in given:
            refuse(name, f"needs config.messages.{needed}; set it")
    if fields["local_noise"] is not None:
        if fields["clip"] is None:
            refuse("local_noise", "needs config.messages.clip: without it there is no privacy")
        if fields["compression"] is not None:
            refuse("local_noise", "does not go with compression: with noise messages are dense")
    # Noise without a bound is no privacy, and a bound without noise is to be said as noise 0.
    if ("private_clip" in given) != ("noise_multiplier" in given):
        (name,) = given & {"private_clip", "noise_multiplier"}
        refuse(name, "needs both private_clip and noise_multiplier; set the other")
    if "private_clip" in given and "robust" in given:
        refuse("robust", "does not go with private_clip, which bounds every client already")
    if "corrupted" in given and cast(int, fields["corrupted"]) < 0:
        refuse("corrupted", "is not allowed; it must be >= 0")
    if "attack_factor" in given and math.isinf(cast(float, fields["attack_factor"])):
        refuse("attack_factor", "is not allowed; it must be finite")
    if "delta" in given:
        if not given & {"noise_multiplier", "local_noise"}:
            refuse("delta", "does not go without noise_multiplier or local_noise")
        if not 0 < cast(float, fields["delta"]) < 1:
            refuse("delta", "is not allowed; it must be in (0, 1)")
    return ConfigDict(
        {k: FieldReference(v, field_type=object) for k, v in with_defaults(fields).items()}
    )


def with_defaults(fields: Mapping[str, Any], num_clients: int | None = None) -> dict[str, Any]:
    """Return the section's values with what None stands for where something else asks for it.

    Args:
      fields: the section's values.
      num_clients: K, for ``delta``; None: it stays as it is.
    """
    # A field without what it belongs to stays None: there it means nothing.
    decided = dict(fields)
    if decided.get("compression") is not None and decided.get("error_feedback") is None:
        decided["error_feedback"] = False
    factored = {"sign_flip": messages.sign_flip, "scaled_update": messages.scaled_update}
    attack = factored.get(decided.get("attack") or "")
    if attack is not None and decided.get("attack_factor") is None:
        decided["attack_factor"] = inspect.signature(attack).parameters["factor"].default
    noisy = {decided.get("noise_multiplier"), decided.get("local_noise")} != {None}
    if noisy and num_clients is not None and decided.get("delta") is None:
        # Below 1 / clients: at that, one client's data could be published and delta still hold.
        decided["delta"] = min(1e-5, 0.1 / num_clients)
    return decided


def wrap(
    algorithm: Algorithm,
    config: ConfigDict,
    dataset: FederatedDataset,
    by: Sequence[str] = ("clients", "server"),
) -> tuple[Algorithm, FederatedDataset]:
    """Return the algorithm and the data of a federation with the section's messages.

    Args:
      algorithm: as the config names it.
      config: resolved.
      dataset: honest.
      by: whose changes are made, of ``"clients"`` and ``"server"``, where they are not simulated
        together.

    Raises:
      ConfigError: naming the value that is not possible.
    """
    try:
        for stage in _stages(config):
            if stage.by in by:
                algorithm, dataset = stage.change(algorithm, dataset)
        return algorithm, dataset
    except ValueError as error:
        raise ConfigError(f"config.messages: {error}") from error


def check_values(algorithm: Algorithm, config: Mapping[str, Any]) -> None:
    """Refuse what the section's functions refuse whatever the data are.

    Args:
      algorithm: as the config names it.
      config: resolved.

    Raises:
      ConfigError: naming the value that is not possible.
    """
    # The data say how many the cohort is where the config does not.
    config = {**config, "cohort_size": config["cohort_size"] or 1}
    try:
        for stage in _stages(config):
            if not stage.of_data:
                algorithm, _ = stage.change(algorithm, cast(FederatedDataset, None))
    except ValueError as error:
        raise ConfigError(f"config.messages: {error}") from error


class StatePaths(NamedTuple):
    """Where the algorithm's own states are in those of a run: names of fields, joined by dots."""

    server: str
    clients: str


class _Stage(NamedTuple):
    """One change that the section makes to a federation.

    Attributes:
      change: ``(algorithm, dataset) -> (algorithm, dataset)``.
      by: who makes it, ``"clients"`` or ``"server"``.
      around: the state that holds something more afterwards, ``"server"`` or ``"clients"``: what
        it was before is its field ``own``. None: states stay as they are.
      of_data: whether the change looks at the data; else it only hands them on.
    """

    change: Callable[[Algorithm, FederatedDataset], tuple[Algorithm, FederatedDataset]]
    by: str
    around: str | None = None
    of_data: bool = False


def own_states(config: Mapping[str, Any], injected: bool) -> StatePaths:
    """Return where the algorithm's own states are in the states of a run.

    Args:
      config: of the run.
      injected: whether the server's state has hyperparameters.
    """
    # The stages that are run are asked, so that the two cannot disagree.
    around = [stage.around for stage in _stages(config)]
    server, clients = (
        ".".join([name] + ["own"] * around.count(name)) for name in ("server", "clients")
    )
    # Hyperparameters in the state go around all of them.
    server = server.replace("server", "server.inner", 1) if injected else server
    return StatePaths(server, clients)


def _stages(config: Mapping[str, Any]) -> list[_Stage]:
    """Return the changes of a resolved config, in order."""
    fields, stages = config["messages"], []
    # Clients change what they send; among them are attackers, who send what they like; then the
    # server defends itself. Each stage is put around those before it.
    transforms = _transforms(fields)
    if transforms:
        chain = messages.chain(*transforms)
        stages.append(
            _Stage(
                lambda algorithm, dataset: (
                    messages.transform_messages(algorithm, chain, dataset),
                    dataset,
                ),
                by="clients",
                around="clients",
            )
        )
    if fields["attack"] is not None:
        stages.append(_Stage(functools.partial(_attacked, config), by="clients", of_data=True))
    if fields["robust"] is not None:
        argument = {"trimmed_mean": fields["trim"], "norm_bound": fields["max_norm"]}
        # The median has no argument.
        given = (argument[fields["robust"]],) if fields["robust"] in argument else ()
        rule = getattr(messages, fields["robust"])(*given)
        stages.append(
            _Stage(
                lambda algorithm, dataset: (messages.robust(algorithm, rule), dataset), by="server"
            )
        )
    if fields["private_clip"] is not None:
        stages.append(_Stage(functools.partial(_private, config), by="server", around="server"))
    return stages


def _transforms(fields: Mapping[str, Any]) -> list[messages.MessageTransform]:
    """Return what clients do to their messages."""
    transforms = [messages.clip(fields["clip"])] if fields["clip"] is not None else []
    feedback = bool(fields["error_feedback"])
    if fields["compression"] == "top_k":
        transforms.append(messages.top_k(fields["fraction"], feedback))
    elif fields["compression"] == "int8":
        transforms.append(messages.int8(feedback))
    elif fields["compression"] == "low_rank":
        transforms.append(messages.low_rank(fields["rank"], feedback))
    if fields["local_noise"] is not None:
        transforms.append(messages.gaussian_noise(fields["local_noise"]))
    return transforms


def _attacked(
    config: Mapping[str, Any], algorithm: Algorithm, dataset: FederatedDataset
) -> tuple[Algorithm, FederatedDataset]:
    fields = config["messages"]
    ids = messages.corrupted_clients(dataset, fields["corrupted"], config["seed"])
    if fields["attack"] == "label_flip":
        return algorithm, messages.label_flip(dataset, ids)
    # The attacks' own defaults differ.
    factor = () if fields["attack_factor"] is None else (fields["attack_factor"],)
    return getattr(messages, fields["attack"])(algorithm, ids, *factor), dataset


def _private(
    config: Mapping[str, Any], algorithm: Algorithm, dataset: FederatedDataset
) -> tuple[Algorithm, FederatedDataset]:
    fields = config["messages"]
    private = messages.private_mean(
        algorithm,
        fields["private_clip"],
        fields["noise_multiplier"],
        cohort_size=config["cohort_size"] or dataset.num_clients,
        seed=config["seed"],
    )
    return private, dataset


def seed_in_program(config: ConfigDict) -> bool:
    """Tell whether a run's seed chooses more than its key: who is corrupted, the server's noise."""
    return config.messages.attack is not None or config.messages.private_clip is not None


def check_accountable(config: ConfigDict, participation: Participation, num_clients: int) -> None:
    """Refuse noise whose privacy cannot be accounted for.

    Raises:
      ConfigError: as `privacy`.
    """
    privacy(config, participation, num_clients, rounds=1)


def privacy(
    config: ConfigDict, participation: Participation, num_clients: int, rounds: int
) -> dict[str, Any]:
    """Return what ``rounds`` rounds are worth, for metrics and summary; empty without noise.

    Keys: ``epsilon`` (central) and ``epsilon_local`` (of a client that takes part in every round),
    each infinite without noise, and ``delta``.

    Args:
      config: resolved.
      participation: sampling only counts where invitations are uniform.
      num_clients: K.
      rounds: so far.

    Raises:
      ConfigError: if the accountant is not installed.
    """
    fields = config.messages
    if fields.noise_multiplier is None and fields.local_noise is None:
        return {}
    delta = with_defaults(fields, num_clients)["delta"]
    values: dict[str, Any] = {}
    try:
        if fields.noise_multiplier is not None:
            cohort = config.cohort_size or num_clients
            # More are invited than needed where answers are lost; everyone invited is a sample.
            most = min(
                math.ceil(round(cohort * config.participation.over_selection, 6)), num_clients
            )
            values["epsilon"] = messages.central_epsilon(
                fields.noise_multiplier,
                rounds,
                invited=min(most, num_clients) if participation.amplifies else num_clients,
                num_clients=num_clients,
                delta=delta,
            )
        if fields.local_noise is not None:
            values["epsilon_local"] = messages.local_epsilon(
                fields.local_noise, fields.clip, rounds, delta
            )
    except ImportError as error:
        raise ConfigError(f"config.messages: {error}") from error
    return {**values, "delta": delta}
