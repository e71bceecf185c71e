"""How a comparison's chosen settings are had again: as commands, and as models on disk."""

import ast
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.compare.entries import Entry
from pflalign_jax.cli.flags import option
from pflalign_jax.runs import files
from pflalign_jax.runs.checkpoints import checkpoint_rounds

OF_COMPARISONS = ("workdir", "algorithms", "seeds", "columns")
"""Flags of `experiments.compare` that a run of one setting has no use for."""


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that have other values than in another, by dotted names.

    >>> changed_fields({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None})
    {'a.c': 3, 'd': None}
    """
    found: dict[str, Any] = {}
    for name, value in after.items():
        was = before.get(name)
        if isinstance(value, Mapping):
            inner = changed_fields(was if isinstance(was, Mapping) else {}, value)
            found |= {f"{name}.{key}": item for key, item in inner.items()}
        # 1, 1.0 and True are equal, but not the same to a config.
        elif name not in before or repr(was) != repr(value):
            found[name] = value
    return found


def run_command_of(arguments: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Return the command that runs a setting of a comparison again.

    Args:
      arguments: of the comparison's command.
      fields: of the config, that the setting has changed.
    """
    of_search = re.findall(r"^--?(config\.compare\.[\w.]+)", "\n".join(arguments), re.MULTILINE)
    rest = list(arguments)
    for name in (*OF_COMPARISONS, *of_search, *(f"config.{field}" for field in fields)):
        _, rest = option(rest, name)
    # What the algorithm is comes before its fields, for the reader.
    named = sorted(fields, key=lambda name: not name.endswith(".name"))
    given = [f"--config.{name}={_text(fields[name])}" for name in named]
    return shlex.join(["python", "-m", "experiments.run", *rest, *given])


def _text(value: Any) -> str:
    """Return a value as flags have it: a text without quotes, unless it would be read as another.

    >>> _text("sign"), _text("1"), _text((0.1,)), _text(None)
    ('sign', "'1'", '(0.1,)', 'None')
    """
    if not isinstance(value, str):
        return repr(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return repr(value)


def models_of(found: Entry) -> str:
    """Return the directories of the chosen setting's runs that hold models; "" if there are none.

    Their names differ in the seed, at the end: ``trials/ditto-0.1-{0,1,2}``.
    """
    held = [run for run in found.runs if checkpoint_rounds(run / files.CHECKPOINTS)]
    if not held:
        return ""
    stem = str(held[0]).rpartition("-")[0]
    seeds = ",".join(str(run).rpartition("-")[2] for run in held)
    return f"{stem}-{seeds if len(held) == 1 else f'{{{seeds}}}'}"


def told(entries: Sequence[Entry], repeat: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that say how every method's chosen setting is had again.

    Args:
      entries: the methods' results.
      repeat: method to its command.
    """
    yield "The chosen settings again, and the models of their seeds:"
    for found in entries:
        models = models_of(found)
        yield f"  {found.method}: {models or 'no models kept'}"
        yield f"    {repeat[found.method]}"
    if any(map(models_of, entries)):
        yield (
            "pfl.load_run(DIR) and python -m experiments.predict --run=DIR take the models as they "
            "are."
        )
    else:
        yield (
            "config.compare.keep=best keeps models, in another --workdir; by default they are kept "
            "where they are small, and the runs have checkpoints."
        )
