"""What config fields mean: all of one experiment (``--explain``), or in short (``--help``).

A field that is a function's argument has the text of that function's docstring; one that exists
only in configs has its text here or in the table that defines it.
"""

import collections
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from pflalign_jax import datasets
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.config import RUN_FIELDS, default_config, resolve
from pflalign_jax.runs.factories import (
    FACTORIES,
    argument_types,
    factories,
    factory,
    parameters,
)
from pflalign_jax.runs.field_help import argument_texts
from pflalign_jax.runs.value_checks import check_config

NAMES = {
    "dataset.name": "which data",
    "model.name": "which model, or your own as my_module:my_function",
    "algorithm.name": "which algorithm, or your own as my_module:my_function",
    "participation.name": "who is invited to a round",
}
"""What the name of a section chooses."""

COMPARISON = {
    "learning_rates": "step sizes chosen on validation for this experiment, by algorithm; used "
    "where algorithm.learning_rate is None",
    "compare.algorithms": "algorithms or variants to compare, where --algorithms names none",
    "compare.grid": "step sizes to try",
    "compare.grids": "other step sizes to try, by algorithm or variant; a compare.grid given to "
    "the command wins over those of the config's file",
    "compare.tuned": "a hyperparameter of its own and its values, to be tried with the step size "
    "found, by algorithm",
    "compare.extensions": "how often a grid may grow whose best value lies at its edge",
    "compare.search_rounds": "rounds of the search for step sizes; None = as many as the runs",
    "compare.seeds_together": "whether the seeds of a setting run as one vmapped program, where "
    "they fit the devices; None = except on CPUs",
    "compare.adapt": "whether the step size of the last adaptation is chosen, too: in every "
    "evaluation the best on validation of the method's step sizes to try",
    "compare.keep": "whose models stay on disk: best = those of the chosen settings, with all "
    "seeds; none; None = best if they take less than 2 GB in all",
    "compare.variants": "names for algorithms with other values of their fields than the defaults",
}
"""Fields of `experiments.compare` alone."""

WIDTH = 99
"""Characters in a line of ``--help``."""


def explain(config: ConfigDict, comparison: bool = False) -> str:
    """Return every field that a run of a config uses: value, default if it differs, meaning.

    Args:
      config: of the experiment.
      comparison: whether to add the fields that only `experiments.compare` reads.

    Raises:
      ConfigError: as `pflalign_jax.runs.value_checks.check_config`.
    """
    resolved = check_config(config)
    usual = _usual_values(config, resolved)
    lines = []
    for name, value in _flat(resolved):
        changed = "" if value == usual[name] else f"  (default {usual[name]!r})"
        lines += [f"{name} = {value!r}{changed}", *_indented(meaning(name, config))]
    if comparison:
        for name, text in COMPARISON.items():
            section, _, key = name.rpartition(".")
            fields = config[section] if section else config
            table = fields[key] if isinstance(fields[key], ConfigDict) else None
            given = _flat(ConfigDict({key: fields[key]}), f"{section}." if section else "")
            # Of tables, like compare.grids, only what is in them, and their text once.
            lines += [f"{n} = {v!r}" for n, v in given if table is None or v is not None]
            lines += _indented(text) if table is None or given else []
    return "\n".join(lines)


def _usual_values(config: ConfigDict, resolved: ConfigDict) -> dict[str, Any]:
    """Return ``{field: default}`` for a config that names the same functions."""
    plain = default_config(config.algorithm.name, config.model.name)
    for section in FACTORIES:
        plain[section].name = config[section].name
        for key, parameter in parameters(section, config[section].name).items():
            if parameter.default is inspect.Parameter.empty:
                plain[section][key] = resolved[section][key]  # there is no default
    usual = dict(_flat(resolve(plain)))
    # The defaults of a partition's arguments are those of the partition that the config has chosen.
    if resolved.dataset.partition is not None:
        own = datasets.PARTITIONS[resolved.dataset.partition].defaults
        usual |= {f"dataset.{key}": value for key, value in own.items()}
    return usual


def _indented(text: str) -> list[str]:
    """Return the lines of a text below the field that it describes."""
    margin = " " * 4
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin)


def meaning(field: str, config: ConfigDict) -> str:
    """Return the text of a field, in the words of the function that the config names for it.

    An argument that its function does not describe is told by its type and default.
    """
    section, _, key = field.rpartition(".")
    if field in NAMES:
        return f"{NAMES[field]}: {', '.join(factories(section))}"
    if section == "messages":
        return message_text(key)
    if section in FACTORIES:
        name = config[section].name
        return argument_text(section, name, key) or _told_by_type(section, name, key)
    return _run_text(field)


def _run_text(field: str) -> str:
    """Return the text of a field that belongs to no section."""
    text = RUN_FIELDS[field].meaning
    return text if isinstance(text, str) else argument_texts(text)[field]


def message_text(key: str) -> str:
    """Return the text of a field of the section ``messages``, with what it belongs to."""
    text = messages.FIELDS[key].meaning
    if not isinstance(text, str):
        text = argument_texts(text[0])[text[1]]
    if key not in messages.BELONGS:
        return text
    other, values = messages.BELONGS[key]
    return f"with {other}={' or '.join(values)}: {text}"


def argument_text(section: str, name: str, key: str) -> str | None:
    """Return the text of an argument of the function that ``section.name`` names; None: no text."""
    text = argument_texts(factory(section, name)).get(key)
    if text is None and section == "dataset":  # of what all datasets take
        text = argument_texts(datasets.partition_examples).get(key)
    return text


def _told_by_type(section: str, name: str, key: str) -> str:
    """Return what can be said of an argument without a text."""
    kind = argument_types(section, name).get(key)
    default = parameters(section, name)[key].default
    said = [] if kind is None else [f"of type {getattr(kind, '__name__', kind)}"]
    said += [] if default is inspect.Parameter.empty else [f"default {default!r}"]
    return f"{', '.join(said) or 'an argument'}; the docstring of {name} does not describe it"


def _flat(config: ConfigDict, prefix: str = "") -> list[tuple[str, Any]]:
    """Return ``(dotted name, value)`` of all fields."""
    pairs: list[tuple[str, Any]] = []
    for name, value in config.items():
        inner = isinstance(value, ConfigDict)
        pairs += _flat(value, f"{prefix}{name}.") if inner else [(prefix + name, value)]
    return pairs


def overview() -> str:
    """Return all fields of configs with a line for each, for ``--help``."""
    lines = [
        "Fields of the config; set any of them with --config.FIELD=VALUE after --config=FILE.",
        "--explain prints those of your experiment with values and whole texts; what can be named",
        "is listed by python -m experiments.list.",
        "",
    ]
    for field, text in _short_texts():
        first = re.split(r"(?<!e\.g)[;.] ", text)[0]  # the first sentence, or up to a semicolon
        line = textwrap.shorten(f"{field}: {first}", WIDTH - 2, placeholder=" ...")
        lines.append(f"  {line}")
    return "\n".join(lines)


def _short_texts() -> Iterator[tuple[str, str]]:
    """Yield every field with a text; where functions differ, with that of most, or with whose."""
    yield from ((name, _run_text(name)) for name in RUN_FIELDS)
    for section in FACTORIES:
        yield f"{section}.name", NAMES[f"{section}.name"]
        texts_of: dict[str, dict[str, str]] = {}  # {field: {function: text}}
        for name in factories(section):
            for key in parameters(section, name):
                texts_of.setdefault(key, {})[name] = argument_text(section, name, key) or ""
        for key, texts in texts_of.items():
            whose = "" if len(texts) == len(factories(section)) else f"{', '.join(texts)}: "
            text, count = collections.Counter(texts.values()).most_common(1)[0]
            yield f"{section}.{key}", whose + (text if 2 * count > len(texts) else "each its own")
    yield from ((f"messages.{key}", message_text(key)) for key in messages.FIELDS)
    yield from COMPARISON.items()
