"""The cells of the maps: a comparison each, and what it says about gradient alignment."""

import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.compare import cells
from experiments.compare.comparison import compare
from experiments.compare.entries import RANKED_BY, Entry, gain
from experiments.compare.paired import Difference
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.runs import files, read_types


class Map(NamedTuple):
    """Two fields of the config that vary; all others are those of the base setting.

    Attributes:
      x, y: their names.
      xs, ys: their values.
    """

    x: str
    xs: Sequence[float]
    y: str
    ys: Sequence[float]


MAPS = {
    "data": Map(
        "dataset.alpha", (0.03, 0.1, 0.5, 100.0), "dataset.examples_per_client", (20, 50, 200)
    ),
    "noise": Map("batch_size", (2, 5, 10, 50), "dataset.label_noise", (0.0, 0.2, 0.4)),
    "work": Map("local_epochs", (1, 2, 5, 10), "cohort_size", (2, 5, 10, 20)),
    "horizon": Map("rounds", (10, 25, 50, 100, 200), "cohort_size", (2, 5, 20)),
}
"""Heterogeneity and amount of data; noise of gradients and of labels; local work and participation;
the number of rounds and participation."""


class Cell(NamedTuple):
    """What a comparison in one setting says.

    Attributes:
      values: field to value, where they are not those of the base setting.
      rival: the rival with the best validation score.
      scores: method to its adapted score on test data, the mean over clients and seeds.
      gains: variant of pFLAlign to how much better it is than ``rival``.
      seconds: that the comparison took.
    """

    values: Mapping[str, float]
    rival: str
    scores: Mapping[str, float]
    gains: Mapping[str, Difference]
    seconds: float


KINDS = {"values": dict, "rival": str, "scores": dict, "gains": dict, "seconds": float}
"""Of what is kept of a `Cell`."""

NUMBER = read_types.Number | None  # None: it is not known
GAIN = {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "won": int, "lost": int, "agree": bool}
"""Of what is kept of a `Difference`."""


def cells_of(name: str, config: ConfigDict) -> Iterator[dict[str, float]]:
    """Yield the values of a map's cells that are not those of the base setting, row by row."""
    of_map = MAPS[name]
    for y in of_map.ys:
        for x in of_map.xs:
            yield changed(config, {of_map.x: x, of_map.y: y})


def changed(config: ConfigDict, values: Mapping[str, float]) -> dict[str, float]:
    """Return the values that are not those of the config, so that maps share their cells."""
    base = files.flat_fields(config.to_dict())
    return {name: value for name, value in values.items() if base[name] != repr(value)}


def folder(values: Mapping[str, float]) -> str:
    """Return the name of a cell's directory.

    >>> folder({"dataset.alpha": 0.5, "rounds": 10}), folder({})
    ('alpha-0.5_rounds-10', 'base')
    """
    parts = (f"{name.rpartition('.')[2]}-{value:g}" for name, value in values.items())
    return "_".join(parts) or "base"


def run_cell(
    config: ConfigDict,
    values: Mapping[str, float],
    rivals: Sequence[str],
    seeds: int,
    root: pathlib.Path,
    progress: ComparisonProgress | None = None,
    stop: Callable[[], int] = lambda: 0,
) -> Cell:
    """Return a cell, which is compared first if it is not in its directory.

    Args:
      config: the base setting; its ``compare.algorithms`` are compared.
      values: of the fields that are others in this cell.
      rivals: those among the algorithms that are not pFLAlign.
      seeds: of every chosen setting.
      root: directory of the map.
      progress, stop: as in `experiments.compare.comparison.compare`.

    Raises:
      WorkdirError: if the cell was made with another config or other seeds, or cannot be read.
    """
    path = root / files.CELLS / folder(values)
    plan = config.copy_and_resolve_references()
    plan.update_from_flattened_dict(values)
    if plan.eval_every == config.rounds:
        plan.eval_every = plan.rounds  # scored at the end alone, however many rounds there are
    setting = cells.setting_of(plan, seeds=seeds)
    found = cells.read(path, setting, KINDS)
    if found is not None:
        return Cell(**found | {"gains": _gains(path, found["gains"])})
    clock = time.perf_counter()
    path.mkdir(parents=True, exist_ok=True)
    entries = compare(plan, list(plan.compare.algorithms), seeds, path, progress, stop)
    cell = cell_of(values, entries, rivals, time.perf_counter() - clock)
    cells.write(path, setting, _as_json(cell))
    return cell


def cell_of(
    values: Mapping[str, float], entries: Sequence[Entry], rivals: Sequence[str], seconds: float
) -> Cell:
    """Return what a comparison's entries say."""
    by_name = {entry.method: entry for entry in entries}
    # On validation data: the best of several on test data would be too good.
    best = max((by_name[name] for name in rivals), key=_validation_merit)
    scores = {
        name: float(np.mean(entry.scores[RANKED_BY]))
        for name, entry in by_name.items()
        if entry.scores.get(RANKED_BY)
    }
    gains = {name: gain(entry, best) for name, entry in by_name.items() if name not in rivals}
    return Cell(dict(values), best.method, scores, gains, seconds)


def _validation_merit(entry: Entry) -> float:
    known = math.isfinite(entry.validation)  # not if all of its runs diverged
    return entry.headline.merit(entry.validation) if known else -math.inf


def _as_json(cell: Cell) -> dict[str, Any]:
    """Return a cell with None where json has no number."""
    gains = {
        name: {field: None if math.isnan(x) else x for field, x in gain._asdict().items()}
        for name, gain in cell.gains.items()
    }
    return {**cell._asdict(), "gains": gains}


def _gains(path: pathlib.Path, kept: Mapping[str, Any]) -> dict[str, Difference]:
    """Return the gains that `_as_json` wrote.

    Raises:
      WorkdirError: if they are something else.
    """
    try:
        read_types.check_fields(kept, dict.fromkeys(kept, dict))
        for fields in kept.values():
            read_types.check_fields(fields, GAIN, required=True)
    except read_types.ReadError as error:
        raise cells.unreadable(path, f"gains: {error}") from error
    known: dict[str, dict[str, Any]] = {
        name: {k: math.nan if fields[k] is None else fields[k] for k in GAIN}
        for name, fields in kept.items()
    }
    return {name: Difference(**fields) for name, fields in known.items()}
