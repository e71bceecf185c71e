"""What is run for each combination of a sweep, and what came of it."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.compare import cells
from experiments.compare.comparison import (
    compare,
    dataset_to_choose_by,
    grid_of,
    keeps_models,
    plain,
    run_counted,
    search_rounds,
)
from experiments.compare.entries import RANKED_BY, Entry, entry
from experiments.compare.repeat import changed_fields
from experiments.compare.trials import Setting, TrialContext
from experiments.sweep.grid import Combination
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.datasets import DatasetError, FederatedDataset
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files, read_types
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.headline import Headline
from pflalign_jax.runs.lock import locked


class Result(NamedTuple):
    """What came of a combination.

    Attributes:
      combination: it.
      headline: the metric of all scores, which are as it is shown: in percent where it is a share.
      learning_rate: step size, as given or as chosen.
      at_edge: whether it was chosen and is the least or the largest that was tried.
      validation, test: the headline of the last round, the mean over clients, of each seed.
      diverged: how many seeds are not in them, as their training diverged.
      seconds: per round, the median over seeds; NaN if all diverged.
      fields: fields of the config that its runs have changed, by dotted name, with the first seed.
    """

    combination: Combination
    headline: Headline
    learning_rate: float
    at_edge: bool
    validation: Sequence[float]
    test: Sequence[float]
    diverged: int
    seconds: float
    fields: dict[str, Any]

    @property
    def merit(self) -> tuple[int, float]:
        """What combinations are chosen by, more is better: no seed diverged, then validation."""
        known = self.headline.merit(float(np.mean(self.validation))) if self.validation else -np.inf
        return -self.diverged, known


KINDS = {
    "headline": dict,
    "learning_rate": float,
    "at_edge": bool,
    "validation": list[float],
    "test": list[float],
    "diverged": int,
    "seconds": float | None,
    "fields": dict,
}
"""Of what is kept of a `Result`."""


class Sweep(NamedTuple):
    """What all combinations of a sweep have in common.

    Attributes:
      config: the experiment, in which they change fields.
      seeds: of each.
      search: whether each one's step size is searched, as by `experiments.compare`.
      root: the sweep's directory.
    """

    config: ConfigDict
    seeds: int
    search: bool
    root: pathlib.Path

    def path(self, combination: Combination) -> pathlib.Path:
        """Return the directory of a combination."""
        return self.root / files.CELLS / combination.folder()

    def setting(self, combination: Combination) -> dict[str, Any]:
        """Return what a combination's result depends on."""
        config = self.plan(combination)
        if not self.search:
            with config.unlocked():
                del config["compare"]
        return cells.setting_of(config, seeds=self.seeds, search=self.search)

    def plan(self, combination: Combination) -> ConfigDict:
        """Return the config of a combination; its models are kept only if that is asked for."""
        config = combination.config.copy_and_resolve_references()
        if config.compare.keep is None:
            config.compare.keep = "none"
        return config

    def read(self, combination: Combination) -> Result | None:
        """Return the result of a combination, None as long as there is none.

        Raises:
          WorkdirError: if it cannot be read, or is of another config or of other flags.
        """
        path = self.path(combination)
        found = cells.read(path, self.setting(combination), KINDS)
        if found is None:
            return None
        seconds = found.pop("seconds")
        fields = found.pop("fields")
        headline = found.pop("headline")
        try:
            read_types.check_fields(headline, read_types.HEADLINE, required=True)
        except read_types.ReadError as error:
            raise cells.unreadable(path, f"headline: {error}") from error
        return Result(
            combination,
            Headline(**headline),
            seconds=math.nan if seconds is None else seconds,
            fields={k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()},
            **found,
        )

    def results(self, found: Iterable[Combination]) -> list[Result]:
        """Return the results that there are of some combinations, in their order.

        Raises:
          WorkdirError: as `read`.
        """
        return [result for each in found if (result := self.read(each)) is not None]


def check_searches(sweep: Sweep, found: Sequence[Combination]) -> None:
    """Refuse what the search of a combination's step size would refuse, before there is any.

    Raises:
      ConfigError: naming the combination and the field.
    """
    for each in found:
        plan = sweep.plan(each)
        try:
            keeps_models(plan, 0)
            if sweep.search:
                search_rounds(plan)
                grid_of(plan, plan.algorithm.name, plan)
        except vocabulary.ConfigError as error:
            raise vocabulary.ConfigError(f"{each}: {error}") from error


def run_cells(
    sweep: Sweep,
    part: Sequence[Combination],
    progress: ComparisonProgress | None = None,
    stop: Callable[[], int] = lambda: 0,
) -> None:
    """Run what is missing of some combinations.

    Those that can share compiled programs follow one another.

    Args:
      sweep: what they have in common.
      part: of its combinations.
      progress, stop: as in `experiments.compare.comparison.compare`.

    Raises:
      ConfigError: for a combination that cannot be run, or whose score is another one than that of
        those before it.
      WorkdirError: if another process works on one of them.
      StoppedError: after checkpoints, when ``stop`` says so.
    """
    progress = ComparisonProgress() if progress is None else progress
    done: list[Result] = []
    left = []
    for each in part:
        result = sweep.read(each)
        if result is None:
            left.append(each)
        else:
            done.append(result)
    same_headline(done)
    if not sweep.search:
        progress.expect(sum(each.config.rounds * sweep.seeds for each in left))
    cache = Cache()
    for each in by_program(left):
        done.append(run_cell(sweep, each, cache, progress, stop))
        same_headline(done)


def run_cell(
    sweep: Sweep,
    each: Combination,
    cache: Cache,
    progress: ComparisonProgress,
    stop: Callable[[], int],
) -> Result:
    """Return the result of a combination, after its runs if there is none yet.

    Args:
      sweep, progress, stop: as in `run_cells`.
      each: the combination.
      cache: of what the combination before has left.

    Raises:
      InUseError: if another process works on it.
      ConfigError, StoppedError: as `run_cells`.
    """
    path = sweep.path(each)
    path.mkdir(parents=True, exist_ok=True)
    with progress.within(str(each)), locked(path, progress.say):
        result = sweep.read(each)  # another process may have been faster
        if result is None:
            result = _run(sweep, each, cache, progress, stop)
            _write(sweep, result)
    return result


def _run(
    sweep: Sweep,
    each: Combination,
    cache: Cache,
    progress: ComparisonProgress,
    stop: Callable[[], int],
) -> Result:
    try:
        if sweep.search:
            return result_of(each, _search(sweep, each, progress, stop))
        return result_of(each, _train(sweep, each, cache, progress, stop))
    except (vocabulary.ConfigError, DatasetError) as error:
        raise vocabulary.ConfigError(f"{each}: {error}") from error


def by_program(found: Sequence[Combination]) -> list[Combination]:
    """Return combinations in an order in which those with the same compiled programs are together.

    The data of two programs that follow one another are the same if they can be.
    """
    keys = [(_data_key(each.config), _program_key(each)) for each in found]
    firsts: dict[Any, int] = {}
    for place, (data, program) in enumerate(keys):
        firsts.setdefault(data, place)
        firsts.setdefault((data, program), place)
    order = sorted(range(len(found)), key=lambda i: (firsts[keys[i][0]], firsts[keys[i]], i))
    return [found[i] for i in order]


class Cache:
    """The data and the compiled programs of the combination before, for the next if they fit."""

    def __init__(self) -> None:
        self._data_key = self._program_key = ""
        self._dataset: FederatedDataset | None = None
        self._built: dict[str, Experiment] = {}

    def of(self, each: Combination) -> tuple[FederatedDataset, dict[str, Experiment]]:
        """Return a combination's data, and programs that may be its, as of `run_trials`."""
        data, program = _data_key(each.config), _program_key(each)
        if (data, program) != (self._data_key, self._program_key):
            self._built = {}  # first, as it holds data, too
        if self._dataset is None or data != self._data_key:
            self._dataset = None
            self._dataset = dataset_to_choose_by(each.config, "combinations")
        self._data_key, self._program_key = data, program
        return self._dataset, self._built


def _data_key(config: ConfigDict) -> str:
    return json.dumps([config.dataset.to_dict(), config.task], sort_keys=True)


def _program_key(each: Combination) -> str:
    """Return what tells combinations apart that have other programs."""
    fields = plain(each.config)
    for name in ("learning_rate", own_field(each)):
        fields["algorithm"].pop(name, None)
    del fields["learning_rates"]
    return json.dumps(fields, sort_keys=True)


def own_field(each: Combination) -> str | None:
    """Return a field of the algorithm that varies and is data of the compiled programs, if any."""
    for name in each.values:
        section, _, field = name.partition(".")
        if section == "algorithm" and field not in ("name", "learning_rate"):
            known = each.config.algorithm[field] is not None
            if known and vocabulary.is_number(each.config.algorithm.name, field):
                return field
    return None


def _train(
    sweep: Sweep,
    each: Combination,
    cache: Cache,
    progress: ComparisonProgress,
    stop: Callable[[], int],
) -> Entry:
    """Train a combination with all seeds, its step size as given."""
    plan = sweep.plan(each)
    keep = plan.compare.keep
    dataset, built = cache.of(each)
    with plan.unlocked():
        del plan["compare"]
    algorithm, field = vocabulary.resolve(plan).algorithm, own_field(each)
    own = None if field is None else algorithm[field]
    setting = Setting(algorithm.name, plan, algorithm.learning_rate, field, own)
    context = TrialContext(
        sweep.path(each),
        dataset,
        each.config.compare.seeds_together,
        progress.say,
        stop,
        on_round=lambda done, row: progress.add(1),
        keep="all" if keep == "best" else "none",
    )
    trials = run_counted(setting, range(sweep.seeds), context, built, progress)
    fields = changed_fields(plain(sweep.config), setting.config(0).to_dict())
    return entry(algorithm.name, trials[0], trials[:1], None, trials, fields)


def _search(
    sweep: Sweep, each: Combination, progress: ComparisonProgress, stop: Callable[[], int]
) -> Entry:
    """Search a combination's step size and run what is chosen with all seeds.

    Nothing is shared with other combinations: a search compiles its own programs.
    """
    plan = sweep.plan(each)
    methods = [plan.algorithm.name]
    (found,) = compare(plan, methods, sweep.seeds, sweep.path(each), progress, stop)
    return found._replace(
        fields={**changed_fields(plain(sweep.config), plain(plan)), **found.fields}
    )


def result_of(each: Combination, found: Entry) -> Result:
    """Return the result of a combination from its runs."""
    key = found.headline.key("validation")
    values = [files.read_summary(path)["last"].get(key) for path in found.runs]
    return Result(
        each,
        found.headline,
        found.learning_rate,
        found.at_edge,
        [float(found.headline.shown(value)) for value in values if value is not None],
        [float(value) for value in found.scores.get(RANKED_BY, [])],
        found.diverged,
        found.seconds,
        found.fields,
    )


def _write(sweep: Sweep, result: Result) -> None:
    kept = result._asdict() | {
        "headline": result.headline._asdict(),
        "seconds": result.seconds if math.isfinite(result.seconds) else None,
    }
    each = kept.pop("combination")
    cells.write(sweep.path(each), sweep.setting(each), kept)


def same_headline(results: Sequence[Result]) -> None:
    """Refuse results that cannot be compared.

    Raises:
      ConfigError: naming two metrics.
    """
    metrics = dict.fromkeys(result.headline.metric for result in results)
    if len(metrics) > 1:
        raise vocabulary.ConfigError(
            f"combinations are scored by {' and '.join(metrics)}, which cannot be compared; set "
            "config.headline to a metric that all have, or vary something else"
        )
