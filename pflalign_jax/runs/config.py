"""The vocabulary of experiment configs: every field, its type, its default, its checks.

The sections ``dataset``, ``model``, ``algorithm`` and ``participation`` have a ``name`` and one
field for every argument of the functions that can be named; None leaves an argument at the
function's default. What fields mean is said by `pflalign_jax.runs.explain`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.options import check_options
from pflalign_jax.datasets.partition_examples import partition_arguments
from pflalign_jax.federated import federate, local_training, local_tx
from pflalign_jax.federated.client_states import PLACES
from pflalign_jax.federated.local import DIRECTIONS
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.config_checks import ConfigError, checked, in_range, nearest, one_of
from pflalign_jax.runs.factories import (
    FACTORIES,
    TRANSFORMS,
    argument_types,
    factories,
    factory,
    is_number,
    metric,
    parameters,
    table_key,
)
from pflalign_jax.runs.step_sizes import SCHEDULES, check_step_sizes
from pflalign_jax.tasks import TASKS
from pflalign_jax.tasks.metrics import FURTHER

__all__ = [
    "ConfigError",
    "default_config",
    "factory",
    "field_type",
    "is_number",
    "nearest",
    "parameters",
    "resolve",
    "table_key",
]


class RunField(NamedTuple):
    """A field of a config that belongs to no section.

    Attributes:
      default: its value where the experiment sets none.
      type: of its values.
      meaning: a text, or the function whose docstring has the text of the argument of this name.
      least: the smallest value, of a whole number.
      choices: all values that there are besides None, of a text.
    """

    default: Any
    type: Any
    meaning: str | Callable
    least: int = 1
    choices: Sequence[str] = ()


RUN_FIELDS = {
    "seed": RunField(
        0, int, "seed of parameters, cohorts and minibatches, >= 0; not of the partition", 0
    ),
    "rounds": RunField(30, int, "communication rounds, >= 1"),
    "eval_every": RunField(
        1,
        int,
        "rounds between evaluations of all clients, >= 1; the last is always evaluated",
    ),
    "task": RunField(
        None,
        str | None,
        f"what the model learns: {', '.join(TASKS)}; None = as the dataset or its labels say",
        choices=tuple(TASKS),
    ),
    "metrics": RunField(
        (),
        tuple[str, ...],
        f"further metrics of clients: {', '.join(FURTHER)}, top_<k>, or your own "
        "pflalign_jax.tasks.Metric as my_module:my_metric",
    ),
    "headline": RunField(
        None,
        str | None,
        "the metric that rounds, step sizes and methods are chosen by; None = the task's first",
    ),
    "standardise_targets": RunField(
        False,
        bool,
        "whether a regression learns targets of mean 0 and standard deviation 1 over all training "
        "examples; scores and predictions keep their units",
    ),
    "cohort_size": RunField(None, int | None, federate),
    "local_optimizer": RunField("sgd", str, local_tx, choices=tuple(DIRECTIONS)),
    "local_epochs": RunField(1, int, local_training),
    "batch_size": RunField(10, int, local_training),
    "learning_rate_schedule": RunField(
        "constant",
        str,
        "how algorithm.learning_rate changes from the first round to the last: constant, cosine, "
        "linear or exponential",
        choices=("constant", *SCHEDULES),
    ),
    "learning_rate_final": RunField(
        0.01,
        float,
        "with a learning_rate_schedule other than constant: what share of algorithm.learning_rate "
        "the last round takes, in [0, 1]; above 0 with exponential",
    ),
    "adapt_learning_rate": RunField(
        None,
        float | tuple[float, ...] | None,
        "step size of the local training before an evaluation's score adapted, or several, of "
        "which every evaluation takes the best on validation; None = that of training",
    ),
    "drop_last": RunField(False, bool, federate),
    "client_chunk": RunField(None, int | None, federate),
    "compute_dtype": RunField(
        "float32",
        str,
        "number format that models compute in: float32, or bfloat16; parameters and states stay "
        "float32",
        choices=("float32", "bfloat16"),
    ),
    "on_nonfinite": RunField(
        "leave_out",
        str,
        "what happens to a client whose loss, message or state is not finite: leave_out leaves it "
        "out of the round's mean, with a warning; raise stops the run",
        choices=("leave_out", "raise"),
    ),
    "new_client_steps": RunField(None, int | None, federate, 0),
    "diagnostics": RunField(
        False,
        bool,
        "write diagnostics.jsonl: P, gamma, directions, gradient noise, agreement of updates",
    ),
    "generate_every": RunField(
        None,
        int | None,
        "rounds between two times that personal models write completions, for exact match and "
        "ROUGE-L; a multiple of eval_every; None = never",
    ),
    "generate_clients": RunField(
        4, int, "whose models generate: the first clients with test examples"
    ),
    "generate_examples": RunField(8, int, "test examples that each of them completes, the first"),
    "client_state_in": RunField(None, str | None, federate, choices=PLACES),
    "checkpoint_every": RunField(
        None,
        int | None,
        "rounds between checkpoints, besides one at every best round; 0 = never; None = automatic, "
        "at most 3 % of run time",
        0,
    ),
    "checkpoints_kept": RunField(
        2, int, "how many of the latest checkpoints are kept, besides the best on validation"
    ),
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
    "moon": ("mu", (0.1, 1.0, 5.0)),
    "cfl": ("eps2", (0.4, 1.6)),
    "knnper": ("lam", (0.2, 0.5, 0.8)),
    "apple": ("share_learning_rate", (0.001, 0.01, 0.1)),
    "fml": ("alpha", (0.5, 0.9)),
    "fedphp": ("lam", (0.1, 0.5)),
    "fedas": ("align_learning_rate", (0.001, 0.01, 0.1)),
    "fedgh": ("server_learning_rate", (0.01, 0.1, 1.0)),
    "fedcac": ("tau", (0.2, 0.5, 0.8)),
    "pfedhn": ("server_learning_rate", (0.03, 0.1, 0.3)),
    "pfedbayes": ("personal_learning_rate", (0.01, 0.03, 0.1)),
    "superfed": ("nu", (1.0, 2.0, 5.0)),
}
"""The hyperparameter that a method's paper tunes, and the values that `compare` tries."""


def default_config(algorithm: str = "pflalign", model: str = "mlp") -> ConfigDict:
    """Return the config with every field at its default; experiments change what differs.

    Args:
      algorithm: value of ``algorithm.name``: one of `pflalign_jax.algorithms.NAMES`, or
        ``module:function`` of your own, whose arguments then are fields, too.
      model: value of ``model.name``, likewise.

    Raises:
      ConfigError: for a name that means nothing, or a module that cannot be imported.
    """
    # If they are outside the package, their arguments are known from here on.
    factory("algorithm", algorithm)
    factory("model", model)

    def field(value: Any) -> FieldReference:
        # Of any type: the type of a ConfigDict's field is else that of its first value.
        return FieldReference(value, field_type=object)

    config = ConfigDict({name: field(f.default) for name, f in RUN_FIELDS.items()})
    for section in FACTORIES:
        names = dict.fromkeys(k for n in factories(section) for k in parameters(section, n))
        config[section] = ConfigDict({"name": field(None), **{k: field(None) for k in names}})
    config.dataset.name, config.model.name, config.algorithm.name = "digits", model, algorithm
    config.participation.name = "uniform"
    config.messages = messages.default_section()
    keys = [table_key(name) for name in factories("algorithm")]
    config.learning_rates = ConfigDict({key: field(None) for key in keys})
    config.compare = ConfigDict(
        {
            "algorithms": field(tuple(dict.fromkeys([*FACTORIES["algorithm"], algorithm]))),
            "grid": field((0.01, 0.03, 0.1, 0.3)),
            "grids": ConfigDict({key: field(None) for key in keys}),
            "tuned": ConfigDict({name: field(value) for name, value in TUNED.items()}),
            "extensions": 3,
            "search_rounds": field(None),
            "seeds_together": field(None),
            "adapt": field(False),
            "keep": field(None),
            "variants": ConfigDict(),
        }
    )
    config.compare.grids.pflalign = (0.3, 1.0, 3.0, 10.0)
    return config.lock()


def field_type(config: ConfigDict, name: str) -> Any:
    """Return the type of a field's values, by its dotted name; ``object`` if none is known.

    Raises:
      ConfigError: for a field of a section whose ``name`` means nothing.
    """
    section, _, field = name.rpartition(".")
    if section in FACTORIES:
        kinds = argument_types(section, config[section].name)
        return float if field in TRANSFORMS else kinds.get(field, object)
    if section == "learning_rates":
        return float
    fields = messages.FIELDS if section == "messages" else RUN_FIELDS
    return fields[field].type if field in fields else object


def resolve(config: ConfigDict) -> ConfigDict:
    """Check a config and return it with every None replaced by the default that will be used.

    Fields of other functions than the named ones are dropped. What only the data or the machine
    decide is None still; `pflalign_jax.runs.effective.effective_config` fills it in.

    Raises:
      ConfigError: for an unknown name, a value of the wrong type, or a field that was set but
        that the named function does not take.
    """
    resolved = ConfigDict()
    for name, field in RUN_FIELDS.items():
        resolved[name] = checked(name, config[name], field.type)
        if type(resolved[name]) is int:
            in_range(name, resolved[name], field.least)
        if field.choices and resolved[name] is not None:
            one_of(name, resolved[name], field.choices)
    if resolved.standardise_targets and resolved.task not in (None, "regression"):
        raise ConfigError(
            f"config.standardise_targets=True does nothing with task {resolved.task!r}; it is for "
            "'regression'"
        )
    for name in resolved.metrics:
        metric(name)
    for section in FACTORIES:
        resolved[section] = _resolve_section(section, config[section])
    resolved.messages = messages.resolve_section(config.messages)
    key = table_key(config.algorithm.name)
    listed = config.get("learning_rates", {}).get(key)  # a config resolved before has no table
    if config.algorithm.get("learning_rate") is None and listed is not None:
        resolved.algorithm.learning_rate = checked(f"learning_rates.{key}", listed, float)
    check_step_sizes(resolved)
    return resolved


def _resolve_section(section: str, fields: ConfigDict) -> ConfigDict:
    """Return a section with the fields of the function that it names, checked and filled in."""
    name = fields.name
    accepted = parameters(section, name)
    set_fields = {k: v for k, v in fields.items() if v is not None and k != "name"}
    foreign = sorted(set(set_fields) - set(accepted))
    if foreign:
        raise ConfigError(
            f"config.{section}.{foreign[0]}={set_fields[foreign[0]]!r} does not go with "
            f"{section} {name!r}, which takes: {', '.join(accepted)}"
        )
    kinds = argument_types(section, name)
    resolved = ConfigDict({"name": name})
    for key, parameter in accepted.items():
        if key in set_fields:
            kind = float if key in TRANSFORMS else kinds.get(key, object)
            value = checked(f"{section}.{key}", set_fields[key], kind)
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(
                f"config.{section}.{key} is not set, and {section} {name!r} needs it; "
                f"pass --config.{section}.{key}=..."
            )
        else:
            value = parameter.default
        resolved[key] = FieldReference(value, field_type=object)
    if section == "dataset":
        try:
            check_options(resolved)
            # What this partition takes; where the data choose the partition it is known later.
            if resolved.partition is not None and not resolved.partition_file:
                resolved.update(partition_arguments(resolved.partition, resolved))
        except DatasetError as error:  # which does not know that it is about a config
            raise ConfigError(f"config.dataset: {error}") from error
    return resolved
