"""The vocabulary of experiment configs: every field, its meaning, its default, its checks.

The sections ``dataset``, ``model`` and ``algorithm`` have a ``name`` and one field for every
argument of the functions that can be named; None leaves an argument at the function's default.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.align import align_transform
from pflalign_jax.federated import participation, proximal
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.config_checks import ConfigError, checked, nearest, one_of

__all__ = ["ConfigError", "default_config", "explain", "nearest", "parameters", "resolve"]


FACTORIES: Mapping[str, Mapping[str, Callable]] = {
    "dataset": {name: getattr(datasets, name) for name in datasets.NAMES},
    "model": {name: getattr(models, name) for name in models.NAMES},
    "algorithm": {name: getattr(algorithms, name) for name in algorithms.NAMES},
    "participation": {name: getattr(participation, name) for name in participation.NAMES},
}
"""What each section's ``name`` can be."""

OWN_FIELDS = {
    "seed": (0, int, "seed of parameters, cohorts and minibatches; not of the partition"),
    "rounds": (30, int, "communication rounds, >= 1"),
    "eval_every": (1, int, "evaluate all clients every so many rounds, and always at the end"),
    "cohort_size": (None, int | None, "clients per round; None = all"),
    "local_epochs": (1, int, "passes over its data that a client makes per round"),
    "batch_size": (10, int, "examples per local step"),
    "drop_last": (
        False,
        bool,
        "leave out the last batch of a local epoch where it is not full, as PFLlib does",
    ),
    "client_chunk": (None, int | None, "clients vmapped at a time per device; None = automatic"),
    "compute_dtype": (
        "float32",
        str,
        "float32, or bfloat16: models compute in it, parameters and states stay float32",
    ),
    "on_nonfinite": (
        "leave_out",
        str,
        "a client whose loss, message or state is not finite: leave_out of the round's mean and "
        "warn, or raise, which stops the run",
    ),
    "new_client_steps": (
        None,
        int | None,
        "local steps of a new client before its adapted model is scored; None = as in a round",
    ),
    "diagnostics": (
        False,
        bool,
        "write diagnostics.jsonl: P, gamma, directions, gradient noise, agreement of updates",
    ),
    "client_state_in": (
        None,
        str | None,
        "where client states live: 'device', 'host', 'disk' (in the workdir); None = where there "
        "is room",
    ),
    "checkpoint_every": (
        None,
        int | None,
        "rounds between checkpoints, and one at every best round; 0 = never; None = as often as "
        "takes at most 3 % of the time",
    ),
    "checkpoints_kept": (2, int, "latest checkpoints kept, beside the best on validation"),
}
"""Name to (default, type, meaning)."""

HELP = {
    "dataset.name": "which data: {names}",
    "dataset.path": "file or directory to read; None = the dataset's own default",
    "dataset.num_clients": "clients that train; None = 20, or all natural owners",
    "dataset.partition": "{partitions}; None = natural where there are owners, else dirichlet",
    "dataset.alpha": "dirichlet, dirichlet_balanced, extended_dirichlet: concentration; small = "
    "skewed",
    "dataset.classes_per_client": "pathological, extended_dirichlet: labels of each client",
    "dataset.shards_per_client": "shards: shards of each client",
    "dataset.sigma": "lognormal: standard deviation of the logarithm of sizes",
    "dataset.exponent": "zipf: sizes are proportional to rank ** -exponent",
    "dataset.min_examples": "examples that every client has at least; smaller natural owners are "
    "left out",
    "dataset.partition_file": "a partition.npz to use instead, of this or another run",
    "dataset.num_new_clients": "clients held out whole, to be scored as new_clients",
    "dataset.validation_fraction": "part of a client's examples held out for choices",
    "dataset.test_fraction": "part of a client's examples held out for test scores",
    "dataset.validation_count": "examples held out for choices, instead of a fraction",
    "dataset.test_count": "examples held out for test scores, instead of a fraction",
    "dataset.split_by": "stratified, random or temporal; None = temporal for text, else stratified",
    "dataset.source_split": "False pools the train and test sets that the data came with",
    "dataset.feature_shift": "rotation, contrast, brightness or noise, different for each client",
    "dataset.feature_shift_strength": "the most of it: degrees, powers of 2, shares of the range",
    "dataset.label_shift": "swap or permute: labels mean something else in each client",
    "dataset.shift_groups": "number of different shifts; None = each client its own",
    "dataset.normalise": "fixed, or train: mean and deviation of all clients' training examples",
    "dataset.mean": "other constants to subtract, for each channel",
    "dataset.std": "and to divide by",
    "dataset.fraction": "seeded random part of all examples to use at all",
    "dataset.variant": "femnist: all or digits; emnist: balanced, byclass, ...",
    "dataset.data_dir": "femnist: where TFDS keeps prepared data; None = TFDS's own default",
    "dataset.labels": "cifar100: fine (100) or coarse (20)",
    "dataset.length": "text: tokens per example",
    "dataset.vocabulary": "ag_news: words kept, the most frequent of the training set",
    "dataset.label": "tables: name of the label column",
    "dataset.client_column": "tables: name of the column with the client, in a single file",
    "dataset.split_column": "tables: name of a column with train, validation or test",
    "dataset.shape": "leaf: shape of one example, e.g. (28, 28, 1)",
    "dataset.beta": "synthetic: how much clients' features differ",
    "dataset.model_alpha": "synthetic: alpha, how much clients' models differ",
    "dataset.devices": "synthetic: number of natural owners",
    "dataset.iid": "synthetic: True for the IID variant",
    "dataset.num_classes": "number of labels; None = the largest label plus one",
    "dataset.seed": "seed of the partition, the splits, new clients and shifts",
    "model.name": "which model: {names}",
    "model.hidden": "mlp: widths of the hidden layers, e.g. (200,); lstm: width of its layers",
    "model.conv": "cnn, resnet: 'patches' (fast on CPU) or 'lax'",
    "model.features": "cnn: channels of the two convolutions",
    "model.width": "transformer, fasttext: width of the embeddings; resnet: channels at first",
    "model.layers": "transformer: number of blocks; lstm: of layers",
    "model.heads": "transformer: attention heads",
    "model.depth": "resnet: 10 or 18",
    "model.norm": "resnet: 'group' or 'batch' normalisation",
    "model.embedding": "lstm: width of the embeddings",
    "model.vocabulary": "fasttext: tokens, as many as the dataset's",
    "model.channels": "har_cnn: channels of the convolutions",
    "model.kernel": "har_cnn: length of the convolutions",
    "model.dense": "cnn, har_cnn: width of the dense layer",
    "algorithm.name": "which algorithm: {names}",
    "algorithm.learning_rate": "step size; None = the one that this experiment lists for the "
    "algorithm under learning_rates",
    "algorithm.beta": "pflalign: decay of its averages, in [0, 1)",
    "algorithm.eps": "pflalign: added to denominators",
    "algorithm.precondition": "pflalign: False steps along g instead of P g",
    "algorithm.correction": "pflalign: 'probability', 'sign', 'none' or a constant in [0, 1]",
    "algorithm.realignment": "pflalign: False keeps directions at zero",
    "algorithm.memory_dtype": "pflalign: 'bfloat16' halves the averages kept between rounds",
    "algorithm.before": "pflalign: mu of a pull to the received model, as FedProx's",
    "algorithm.personal_tx": "ditto: step size of align_transform for the personal model",
    "algorithm.body_tx": "fedrep: step size of align_transform for the body",
    "algorithm.head": "methods with a head: names of its layers; None = the model's last layer",
    "algorithm.alpha": "apfl: first share of the own model; feddyn, fedamp, perfedavg: see there",
    "algorithm.mu": "fedprox: pull to the global model; gpfl: weight decay of what is shared",
    "algorithm.lam": "ditto, pfedme, fedamp, fedproto, fedpac, fedcp, gpfl: pull of what is "
    "personal to what is global",
    "algorithm.kappa": "feddbe: pull of mean features to the consensus",
    "algorithm.server_learning_rate": "fedavgm, fedadam, fedyogi, scaffold: step of the server",
    "algorithm.momentum": "fedavgm: of the server",
    "algorithm.b1": "fedadam, fedyogi: decay of the first moment",
    "algorithm.b2": "fedadam, fedyogi: decay of the second moment",
    "algorithm.tau": "fedadam, fedyogi: added to the denominator",
    "algorithm.hessian_free": "perfedavg: True adds the second-order term",
    "algorithm.delta": "perfedavg: of its finite difference",
    "algorithm.personal_learning_rate": "pfedme: of the inner steps",
    "algorithm.inner_steps": "pfedme: inner steps per batch",
    "algorithm.adaptive": "apfl: whether the share is learnt",
    "algorithm.head_epochs": "fedrep, fedpac: passes over the data for the head",
    "algorithm.fine_tune_learning_rate": "fedbabu: step size to personalise",
    "algorithm.fine_tune_epochs": "fedbabu: passes over the data to personalise",
    "algorithm.norms": "fedbn: names or patterns of the layers that stay local",
    "algorithm.weight_learning_rate": "fedala: of its mixing weights",
    "algorithm.weight_epochs": "fedala: passes over the data for its mixing weights",
    "algorithm.sigma": "fedamp: width of the attention",
    "algorithm.num_clusters": "ifca: number of models on the server",
    "participation.name": "who is invited to a round: {names}",
    "participation.groups": "cyclic: groups of clients that take turns",
    "participation.low": "availability: the least probability of a client to be available",
    "participation.high": "availability: the highest",
    "participation.period": "availability: rounds of a day, half of which a client sleeps; None = "
    "never",
    "participation.dropout": "probability that an invited client does not answer",
    "participation.over_selection": "cohorts invited per round, >= 1; the first answers count",
    "participation.slowness": "standard deviation of the logarithm of clients' time per step",
    "participation.deadline": "local steps that a client of median speed finishes in time; slower "
    "ones do fewer; None = no deadline",
    "learning_rates": "step sizes chosen on validation for this experiment, by algorithm",
    "compare.algorithms": "what experiments.compare compares: algorithms or variants",
    "compare.grid": "its step sizes",
    "compare.grids": "other grids, by algorithm or variant",
    "compare.tuned": "own hyperparameters to be searched after the step size, by algorithm: "
    "(field, values)",
    "compare.extensions": "how often a grid may grow whose best value lies at its edge",
    "compare.search_rounds": "rounds of a search that ends before the runs; None = theirs",
    "compare.seeds_together": "one vmapped program for the seeds of a setting, where they fit the "
    "devices: True, False, or None = not on CPUs",
    "compare.variants": "names for algorithms with other fields than their defaults",
}

TUNED = {
    "fedprox": ("mu", (0.001, 0.01, 0.1, 1.0)),
    "fedavgm": ("momentum", (0.5, 0.9)),
    "fedadam": ("server_learning_rate", (0.001, 0.01, 0.1)),
    "fedyogi": ("server_learning_rate", (0.001, 0.01, 0.1)),
    "feddyn": ("alpha", (0.001, 0.01, 0.1)),
    "perfedavg": ("alpha", (0.001, 0.01, 0.1)),
    "pfedme": ("personal_learning_rate", (0.01, 0.03, 0.1)),
    "ditto": ("lam", (0.1, 1.0)),
    "fedproto": ("lam", (0.1, 1.0, 4.0)),
    "feddbe": ("kappa", (0.1, 1.0, 10.0, 25.0)),
    "fedbabu": ("fine_tune_learning_rate", (0.001, 0.01, 0.1)),
    "fedamp": ("sigma", (0.1, 10.0, 1e6)),
    "fedcp": ("lam", (1.0, 5.0)),
    "gpfl": ("mu", (0.0, 0.1)),
}
"""The hyperparameter that a method's paper tunes, and the values that `compare` tries."""

_SUPPLIED = {
    "loss",
    "model",
    "num_classes",
    "local_epochs",
    "batch_size",
    "num_clients",
    "diagnostics",
}
"""Arguments of models and algorithms that the runner supplies itself."""

_MODELS_OWN = "head"
"""The argument of algorithms that the runner takes from the model where the config has None."""


TRANSFORMS: dict[str, Callable[[float], Any]] = {
    "personal_tx": align_transform,
    "body_tx": align_transform,
    "before": proximal,
}
"""Arguments of algorithms that are transforms, made from the number that a config has for them."""


def parameters(section: str, name: str) -> dict[str, inspect.Parameter]:
    """Return the configurable arguments of the function that ``section.name`` names."""
    supplied = _SUPPLIED if section != "dataset" else set()
    found = dict(inspect.signature(FACTORIES[section][name]).parameters)
    if section == "dataset" and "options" in found:
        del found["options"]
        dealt = inspect.signature(datasets.partition_examples).parameters
        found.update((k, p) for k, p in dealt.items() if k != "examples")
    return {k: p for k, p in found.items() if k not in supplied}


def is_number(name: str, field: str) -> bool:
    """Tell whether an algorithm's argument is a number that decides on no shapes and no steps."""
    kind = typing.get_type_hints(FACTORIES["algorithm"][name]).get(field)
    return kind is float or field in TRANSFORMS


def default_config() -> ConfigDict:
    """Return the config with every field at its default; experiments change what differs."""

    def field(value):
        return FieldReference(value, field_type=object)

    config = ConfigDict({name: field(default) for name, (default, _, _) in OWN_FIELDS.items()})
    for section, factories in FACTORIES.items():
        names = dict.fromkeys(k for name in factories for k in parameters(section, name))
        config[section] = ConfigDict({"name": field(None), **{k: field(None) for k in names}})
    config.dataset.name, config.model.name, config.algorithm.name = "digits", "mlp", "pflalign"
    config.participation.name = "uniform"
    config.messages = messages.default_section()
    config.learning_rates = ConfigDict({name: field(None) for name in FACTORIES["algorithm"]})
    config.compare = ConfigDict(
        {
            "algorithms": field(tuple(FACTORIES["algorithm"])),
            "grid": field((0.01, 0.03, 0.1, 0.3)),
            "grids": ConfigDict({name: field(None) for name in FACTORIES["algorithm"]}),
            "tuned": ConfigDict({name: field(value) for name, value in TUNED.items()}),
            "extensions": 3,
            "search_rounds": field(None),
            "seeds_together": field(None),
            "variants": ConfigDict(),
        }
    )
    config.compare.grids.pflalign = (0.3, 1.0, 3.0, 10.0)
    return config.lock()


def resolve(config: ConfigDict) -> ConfigDict:
    """Check a config and return it with every None replaced by the default that will be used.

    Fields of other functions than the named ones are dropped, so that what is written to
    ``config.json`` is what was run.

    Raises:
      ConfigError: for an unknown name, a value of the wrong type, or a field that was set but
        that the named function does not take.
    """
    resolved = ConfigDict()
    for name, (_, kind, _) in OWN_FIELDS.items():
        resolved[name] = checked(name, config[name], kind)
        if kind is int and name != "seed" and resolved[name] < 1:
            raise ConfigError(f"config.{name}={resolved[name]} is not allowed; it must be >= 1")
    if (resolved.checkpoint_every or 0) < 0:
        raise ConfigError(
            f"config.checkpoint_every={resolved.checkpoint_every} is not allowed; it must be >= 0, "
            "or None"
        )
    one_of("compute_dtype", resolved.compute_dtype, ("float32", "bfloat16"))
    one_of("on_nonfinite", resolved.on_nonfinite, ("leave_out", "raise"))
    for section in FACTORIES:
        resolved[section] = _resolve_section(section, config[section])
    resolved.messages = messages.resolve_section(config.messages)
    algorithm = config.algorithm.name
    if config.algorithm.learning_rate is None and config.learning_rates[algorithm] is not None:
        resolved.algorithm.learning_rate = checked(
            f"learning_rates.{algorithm}", config.learning_rates[algorithm], float
        )
    return resolved


def check_config(config: ConfigDict) -> None:
    """Refuse a config that `resolve` refuses.

    Raises:
      ConfigError: as `resolve`.
    """
    resolve(config)


def _resolve_section(section, fields):
    name = fields.name
    choices = FACTORIES[section]
    if name not in choices:
        raise ConfigError(f"config.{section}.name={name!r} is unknown{nearest(name, choices)}")
    accepted = parameters(section, name)
    set_fields = {k: v for k, v in fields.items() if v is not None and k != "name"}
    foreign = sorted(set(set_fields) - set(accepted))
    if foreign:
        raise ConfigError(
            f"config.{section}.{foreign[0]}={set_fields[foreign[0]]!r} does not go with "
            f"{section} {name!r}, which takes: {', '.join(accepted)}"
        )
    hints = typing.get_type_hints(choices[name])
    if section == "dataset":
        hints = typing.get_type_hints(datasets.partition_examples) | hints
    resolved = ConfigDict({"name": name})
    for key, parameter in accepted.items():
        if key in set_fields:
            kind = float if key in TRANSFORMS else hints.get(key, object)
            value = checked(f"{section}.{key}", set_fields[key], kind)
        elif key == _MODELS_OWN:
            continue
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(
                f"config.{section}.{key} is not set, and {section} {name!r} needs it; "
                f"pass --config.{section}.{key}=..."
            )
        else:
            value = parameter.default
        resolved[key] = FieldReference(value, field_type=object)
    return resolved


def describe(config: ConfigDict) -> str:
    """Return every field that a run of a config uses: value, default if it differs, meaning.

    Raises:
      ConfigError: as `resolve`.
    """
    resolved, plain = resolve(config), default_config()
    for section in FACTORIES:
        plain[section].name = config[section].name
        for key, parameter in parameters(section, config[section].name).items():
            if parameter.default is inspect.Parameter.empty and key in resolved[section]:
                plain[section][key] = resolved[section][key]  # there is no default
    default, lines = resolve(plain), []
    meanings = {name: text for name, (_, _, text) in OWN_FIELDS.items()}
    meanings |= {f"messages.{name}": text for name, (_, text) in messages.FIELDS.items()} | HELP
    for name, value in _flat(resolved):
        usual = dict(_flat(default)).get(name)
        changed = "" if value == usual else f"  (default {usual!r})"
        lines += [f"{name} = {value!r}{changed}", f"    {_filled(name, meanings[name])}"]
    return "\n".join(lines)


def _flat(config, prefix=""):
    """Return ``(dotted name, value)`` of all fields of a resolved config."""
    pairs = []
    for name, value in config.items():
        inner = isinstance(value, ConfigDict)
        pairs += _flat(value, f"{prefix}{name}.") if inner else [(prefix + name, value)]
    return pairs


def _filled(name, text):
    names = ", ".join(FACTORIES.get(name.split(".")[0], ()))
    return text.format(names=names, partitions=", ".join(datasets.PARTITIONS))


def explain() -> str:
    """Return all config fields with their meanings, for ``--help``."""
    lines = [
        "Fields of the config; override any with --config.FIELD=VALUE after --config=FILE:",
        *(f"  {name} ({default}): {text}" for name, (default, _, text) in OWN_FIELDS.items()),
    ]
    lines += [f"  {name}: {_filled(name, text)}" for name, text in HELP.items()]
    lines += messages.explain()
    return "\n".join(lines)
