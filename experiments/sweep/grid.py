"""The grid of a sweep: which fields of the config have which values, from the command line."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.flags import option, with_fields
from pflalign_jax.runs.config import ConfigError
from pflalign_jax.runs.factories import FACTORIES, factory
from pflalign_jax.runs.value_checks import check_config

FLAG = re.compile(r"--?sweep\.([\w.]+)(?:=(.*))?", re.DOTALL)

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")
"""What only a study can choose from: ``low..high``."""

EXAMPLE = "--sweep.algorithm.beta=0.5,0.9"

LONGEST = 120
"""Characters of a combination's directory, at most."""

Grid = Mapping[str, Sequence[str]]
"""Field of the config, by its dotted name, to its values, as texts."""


class Combination(NamedTuple):
    """One place of a grid.

    Attributes:
      values: field to value, as given.
      config: with these values.
    """

    values: Mapping[str, str]
    config: ConfigDict

    def __str__(self) -> str:
        return ", ".join(f"{name}={text}" for name, text in self.values.items())

    def folder(self) -> str:
        """Return the name of its directory, whatever the order of the fields.

        >>> Combination({"rounds": "5", "algorithm.beta": "0.5"}, ConfigDict()).folder()
        'algorithm.beta-0.5_rounds-5'
        """
        whole = "_".join(f"{name}-{self.values[name]}" for name in sorted(self.values))
        name = re.sub(r"[^\w.-]", "", whole)
        if name == whole and len(name) <= LONGEST:
            return name
        # What tells it from others of the same letters.
        return f"{name[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def take_grid(arguments: Sequence[str]) -> tuple[Grid, list[str]]:
    """Return the grid that a command's arguments have, and the other arguments.

    Raises:
      FlagError: for a field without values, or given twice.
    """
    grid: dict[str, Sequence[str]] = {}
    rest, words = [], iter(arguments)
    for word in words:
        found = FLAG.fullmatch(word)
        if found is None:
            rest.append(word)
            continue
        name, text = found.groups()
        text = next(words, "") if text is None else text
        if name in grid:
            raise FlagError(f"--sweep.{name} is given twice; give all its values at once")
        grid[name] = values_of(name, text)
    return grid, rest


def has_ranges(grid: Grid) -> bool:
    """Tell whether a field of a grid has a range, which only a study can have."""
    return any(RANGE.fullmatch(text) for texts in grid.values() for text in texts)


def arguments_of_run(arguments: Sequence[str]) -> list[str]:
    """Return those of a sweep's arguments that a run has, too, or `experiments.compare`.

    >>> arguments_of_run(["--config=a.py", "--sweep.rounds=5,10", "--search", "--seeds=3"])
    ['--config=a.py', '--seeds=3']
    """
    _, rest = take_grid(arguments)
    rest = option(rest, "trials")[1]
    return [word for word in rest if word.lstrip("-").split("=")[0] not in ("search", "nosearch")]


def values_of(name: str, text: str) -> list[str]:
    """Return the values that a text lists: commas in brackets or quotes part nothing.

    >>> values_of("model.hidden", "(50,), (100, 50)"), values_of("rounds", "5,10,5")
    (['(50,)', '(100, 50)'], ['5', '10'])

    Raises:
      FlagError: if there is none, or one is empty.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "\"'":
            quote = "" if letter == quote else quote or letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    found = [part.strip() for part in parts]
    if not all(found):
        raise FlagError(
            f"--sweep.{name}={text} has an empty value; list values with commas between them, as "
            f"{EXAMPLE}"
        )
    return list(dict.fromkeys(found))


def name_outside_functions(grid: Grid) -> None:
    """Import the functions outside the package that a grid names, so that the config has their
    arguments as fields.
    """
    for section in FACTORIES:
        for name in grid.get(f"{section}.name", ()):
            if ":" in name:
                factory(section, name)


def combinations(config: ConfigDict, grid: Grid, search: bool) -> list[Combination]:
    """Return the combinations of a grid's values, the last field's changing first.

    Args:
      config: in which they take the place of other values.
      grid: fields and values.
      search: whether step sizes are searched.

    Raises:
      FlagError: for no field, an unknown one, or one that would do nothing.
      ConfigError: for values that a config cannot have, alone or together.
    """
    if not grid:
        raise FlagError(f"no field to vary; pass such as {EXAMPLE}")
    for name in grid:
        _refuse_field(name, search)
        if _is_section(config, name):
            raise FlagError(f"--sweep.{name} is a section of fields; name one of them")
    return list(_combined(config, grid))


def _combined(config: ConfigDict, grid: Grid) -> Iterator[Combination]:
    for texts in itertools.product(*grid.values()):
        values = dict(zip(grid, texts, strict=True))
        found = Combination(values, with_fields(config, values))
        try:
            check_config(found.config)
        except ConfigError as error:
            raise ConfigError(f"{found}: {error}") from error
        yield found


def _is_section(config: ConfigDict, name: str) -> bool:
    node = config
    for part in name.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            return False
        node = node[part]
    return isinstance(node, ConfigDict)


def _refuse_field(name: str, search: bool) -> None:
    """Refuse a field that a sweep decides about itself, or that would do nothing."""
    reason = None
    if name == "seed":
        reason = "every combination has the seeds 0, 1, ... of --seeds"
    elif name in ("headline", "task"):
        reason = "combinations are compared by one score"
    elif name.startswith("compare.") and not search:
        reason = "it is for --search"
    elif name.startswith("compare.algorithms"):
        reason = "vary algorithm.name"
    elif search and (name == "algorithm.learning_rate" or name.startswith("learning_rates.")):
        reason = "--search chooses step sizes; leave one of them out"
    if reason is not None:
        raise FlagError(f"--sweep.{name} is not possible: {reason}")


class Shard(NamedTuple):
    """The part of a sweep that a process runs: every ``total``-th combination.

    Attributes:
      number: which part, from 1 on.
      total: parts that there are.
    """

    number: int = 1
    total: int = 1

    def of(self, found: Sequence[Combination]) -> Sequence[Combination]:
        """Return the combinations of this part."""
        return found[self.number - 1 :: self.total]


def shard_of(text: str | None) -> Shard:
    """Return the shard that ``--shard=i/n`` names; all in one without it.

    Raises:
      FlagError: for another text, or a number out of range.
    """
    if text is None:
        return Shard()
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = Shard(*map(int, found.groups())) if found else Shard(0, 0)
    if not 1 <= shard.number <= shard.total:
        raise FlagError(
            f"--shard={text} is not possible; it must be i/n, i from 1 to n, as 1/4 to 4/4"
        )
    return shard
