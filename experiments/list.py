"""Show what a config can name: algorithms, models, datasets, partitions, participation, messages.

python -m experiments.list [algorithms|models|datasets|partitions|participation|messages ...]
"""

import inspect
import re
from collections.abc import Callable

from pflalign_jax import algorithms, datasets
from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.config_checks import nearest
from pflalign_jax.runs.explain import message_text
from pflalign_jax.runs.factories import FACTORIES


def line(function: Callable) -> str:
    """Return the first sentence of a docstring: of an algorithm's file where it has one."""
    module = inspect.getmodule(function)
    # An algorithm's file begins with what the method is, its factory with what it returns.
    own = module is not None and module.__name__ == f"{algorithms.__name__}.{function.__name__}"
    text = (inspect.getdoc(module if own else function) or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r"^(Return|Give) (\w)", lambda m: m[2].upper(), text).replace("`", "")


KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "algorithms": ("algorithm.name", {n: line(f) for n, f in FACTORIES["algorithm"].items()}),
    "models": ("model.name", {n: line(f) for n, f in FACTORIES["model"].items()}),
    "datasets": ("dataset.name", {n: line(f) for n, f in FACTORIES["dataset"].items()}),
    "partitions": (
        "dataset.partition",
        {name: line(partition.function) for name, partition in datasets.PARTITIONS.items()},
    ),
    "participation": (
        "participation.name",
        {n: line(f) for n, f in FACTORIES["participation"].items()},
    ),
    "messages": (
        "messages.FIELD",
        {name: message_text(name) for name in messages.FIELDS},
    ),
}
"""Kind to the field that names one, and ``{name: one line}``."""


def main(kinds: list[str]) -> None:
    """Print the given kinds, or all."""
    for kind in kinds:
        if kind not in KINDS:
            raise FlagError(f"{kind!r} is unknown{nearest(kind, KINDS)}")
    for kind in kinds or KINDS:
        field, names = KINDS[kind]
        print(f"{kind} (--config.{field}=...)")
        width = max(map(len, names))
        for name, text in names.items():
            print(f"  {name:{width}}  {text}")


if __name__ == "__main__":
    run_command(main)
