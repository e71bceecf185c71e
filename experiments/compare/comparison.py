"""A comparison: for each method search step sizes on validation, then run several seeds."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from experiments.compare import entries
from experiments.compare.repeat import changed_fields
from experiments.compare.trials import (
    OwnGrid,
    Setting,
    Trial,
    TrialContext,
    keep_best,
    run_trials,
)
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Federation
from pflalign_jax.federated.message_size import num_bytes
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files
from pflalign_jax.runs.build import Experiment, build_dataset, check_experiment
from pflalign_jax.runs.config_checks import one_of
from pflalign_jax.runs.factories import factories, table_key

KEPT = ("best", "none")
"""Values of ``config.compare.keep``."""

SMALL = 2**31
"""Bytes that the kept models of a comparison may take where the config leaves it open."""


def search(
    run: Callable[[float], Trial], grid: list[float], extensions: int
) -> tuple[Trial, list[Trial]]:
    """Return the best trial of a grid and all trials; a grid whose best is at its edge grows.

    Args:
      run: from a step size to its trial.
      grid: step sizes, at least one.
      extensions: how often the grid may grow, by the ratio of its two last values.
    """
    trials = {rate: run(rate) for rate in sorted(grid)}
    # The best value may lie beyond the edge of the grid.
    for _ in range(extensions):
        rates = sorted(trials)
        best = max(rates, key=lambda rate: trials[rate].merit)
        if len(rates) < 2 or best not in (rates[0], rates[-1]):
            break
        # One step further by the ratio of the two values at the edge, to two digits.
        inner = rates[1] if best == rates[0] else rates[-2]
        beyond = float(f"{best * best / inner:.2g}")
        trials[beyond] = run(beyond)
    return max(trials.values(), key=lambda t: t.merit), [trials[r] for r in sorted(trials)]


def settings(config: ConfigDict, method: str) -> ConfigDict:
    """Return the config of a method: an algorithm's name, or a variant of one.

    Raises:
      ConfigError: for a name that is neither.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        variants = dict(config.compare.variants)
        # A variant is an algorithm with other fields; the rest of the config is the same.
        fields = dict(variants.get(method, {"name": method}))
        config.algorithm.update(fields)
        del config["compare"]
    if method not in variants and ":" not in method and method not in factories("algorithm"):
        known = [*factories("algorithm"), *variants]
        raise vocabulary.ConfigError(
            f"algorithm {method!r} is unknown{vocabulary.nearest(method, known)}"
        )
    return config


class MethodSearch(NamedTuple):
    """What is tried for a method.

    Attributes:
      setting: with the first step size.
      grid: step sizes.
      own: its own hyperparameter.
    """

    setting: Setting
    grid: list[float]
    own: OwnGrid


class Plans(NamedTuple):
    """What is compared.

    Attributes:
      configs: method to its config, before the search.
      dataset: of all.
      num_bytes: of one saved state of every method, summed.
    """

    configs: dict[str, ConfigDict]
    dataset: FederatedDataset
    num_bytes: int


def compare(
    config: ConfigDict,
    methods: list[str],
    seeds: int,
    root: pathlib.Path,
    progress: ComparisonProgress | None = None,
    stop: Callable[[], int] = lambda: 0,
    leave_out: dict[str, str] | None = None,
) -> list[entries.Entry]:
    """Run what is missing of a comparison and return its entries, one per method.

    Args:
      config: the experiment.
      methods: names of algorithms and variants.
      seeds: how many of the chosen setting.
      root: the comparison's directory.
      progress: told what runs, and how many rounds are expected and done.
      stop: the signal to stop for, 0 as long as there is none.
      leave_out: gets the methods that do not fit the model or the data, with the reason; None:
        such a method is an error.

    Raises:
      ConfigError: for a method that cannot be run, before any is.
    """
    progress = ComparisonProgress() if progress is None else progress
    plans = plans_of(config, methods, leave_out)
    vocabulary.checked("compare.seeds_together", config.compare.seeds_together, bool | None)
    shorter = search_rounds(config)
    searches = [_search_of(config, method, plan, shorter) for method, plan in plans.configs.items()]
    # A search that was shorter has run no seed for all rounds yet.
    repeated = range(0 if shorter else 1, seeds)
    for each in searches:
        tried = len(each.grid) + len(each.own.values)
        progress.expect(tried * (shorter or config.rounds) + len(repeated) * config.rounds)
    context = TrialContext(
        root,
        plans.dataset,
        config.compare.seeds_together,
        progress.say,
        stop,
        on_round=lambda done, row: progress.add(1),
        keep="all" if keeps_models(config, plans.num_bytes * seeds) else "none",
    )
    return [_compare_method(each, config, repeated, context, progress) for each in searches]


def _compare_method(
    searched: MethodSearch,
    config: ConfigDict,
    repeated: Sequence[int],
    context: TrialContext,
    progress: ComparisonProgress,
) -> entries.Entry:
    """Search a method's step size, then its own hyperparameter, then run the remaining seeds."""
    setting, grid, own = searched
    built: dict[str, Experiment] = {}  # compiled programs; other methods have others
    # Of a search that is shorter nothing is kept: what it chooses is trained again, for all rounds.
    keeps = context.keep == "all" and not setting.rounds
    candidates: list[Trial] = []

    def candidate(setting: Setting) -> Trial:
        keep: Literal["candidates", "none"] = "candidates" if keeps else "none"
        found = run_counted(setting, [0], context._replace(keep=keep), built, progress)
        candidates.extend(found)
        keep_best(candidates)  # at once, so that at most two settings' states are on disk
        return found[0]

    def run_rate(rate: float) -> Trial:
        if rate not in grid:  # the grid has grown
            progress.expect(setting.rounds or config.rounds)
        return candidate(setting._replace(learning_rate=rate))

    best, tried = search(run_rate, grid, config.compare.extensions)
    setting = setting._replace(learning_rate=best.learning_rate)
    others = [candidate(setting._replace(own=value)) for value in own.values]
    best = keep_best(candidates)
    setting = setting._replace(own=best.own, rounds=None)
    repeats = []
    if not searched.setting.rounds:
        repeats.append(best)
        if keeps:
            files.keep_states(best.path)
    if repeated:
        repeats += run_counted(setting, repeated, context, built, progress)
    tuned = own if others else None
    fields = changed_fields(plain(config), setting.config(0).to_dict())
    return entries.entry(setting.method, best, tried, tuned, repeats, fields)


def run_counted(
    setting: Setting,
    seeds: Sequence[int],
    context: TrialContext,
    built: dict[str, Experiment],
    progress: ComparisonProgress,
) -> list[Trial]:
    """Return the trials of a setting as `run_trials`, and count their rounds.

    Those that were done before count as well, and those after a divergence.
    """
    before, rounds = progress.done, len(seeds) * (setting.rounds or setting.plan.rounds)
    numbers = ", ".join(map(str, seeds))
    progress.say(f"{setting}, {'seed' if len(seeds) == 1 else 'seeds'} {numbers}")
    trials = run_trials(setting, seeds, context, built)
    progress.add(rounds - (progress.done - before))
    return trials


def plain(config: ConfigDict) -> dict[str, Any]:
    """Return what the config of a comparison says of its runs."""
    fields: dict[str, Any] = config.copy_and_resolve_references().to_dict()
    del fields["compare"]
    return fields


def keeps_models(config: ConfigDict, num_bytes: int) -> bool:
    """Tell whether a comparison keeps the models of what it chooses.

    Args:
      config: of the comparison.
      num_bytes: of one saved state of each run that would be kept.

    Raises:
      ConfigError: for a ``compare.keep`` that is unknown, or cannot be.
    """
    keep: str | None = config.compare.keep
    vocabulary.checked("compare.keep", keep, str | None)
    saves = config.checkpoint_every != 0
    if keep is None:
        # Of every run the latest checkpoints and the best one are there at its end.
        return saves and num_bytes * (config.checkpoints_kept + 1) <= SMALL
    one_of("compare.keep", keep, KEPT)
    if keep == "best" and not saves:
        raise vocabulary.ConfigError(
            "config.compare.keep='best' needs checkpoints, and config.checkpoint_every=0 is "
            "without; set config.checkpoint_every to None"
        )
    return keep == "best"


def plans_of(
    config: ConfigDict, methods: list[str], leave_out: dict[str, str] | None = None
) -> Plans:
    """Return what is compared: all methods that fit.

    Args:
      config, methods, leave_out: as in `compare`.

    Raises:
      ConfigError: for a method that cannot be run.
    """
    size = 0
    plans = {method: settings(config, method) for method in methods}
    dataset = dataset_to_choose_by(plans[methods[0]], "step sizes")
    adapt: bool = config.compare.adapt
    vocabulary.checked("compare.adapt", adapt, bool)
    for method, plan in list(plans.items()):
        try:
            federation = check_experiment(plan, dataset).federation
            adapts_with = federation.algorithm.adapts_with
            # Methods with a step size of their own for it have it searched as such.
            if adapt and adapts_with == "learning_rate" and plan.adapt_learning_rate is None:
                plan.adapt_learning_rate = grid_of(config, method, plan)
            size += _state_bytes(federation)
        except vocabulary.ConfigError as error:
            if leave_out is None:
                raise vocabulary.ConfigError(f"{method}: {error}") from error
            leave_out[method] = str(error)
            del plans[method]
    if not plans:
        raise vocabulary.ConfigError(f"no method fits: {leave_out}")
    return Plans(plans, dataset, size)


def dataset_to_choose_by(plan: ConfigDict, what: str) -> FederatedDataset:
    """Return the dataset of a config, which has validation examples to choose something by.

    Raises:
      ConfigError: if it has none, before hours of trials without a score.
    """
    dataset = build_dataset(vocabulary.resolve(plan))
    if not len(dataset.splits["validation"].indices):
        raise vocabulary.ConfigError(
            f"there is no validation split to choose {what} by; set "
            "config.dataset.validation_fraction or validation_count"
        )
    return dataset


def _state_bytes(federation: Federation) -> int:
    """Return the bytes of a federation's state when it is saved."""
    server, client = federation.shapes
    return num_bytes(server) + federation.dataset.num_clients * num_bytes(client)


def _search_of(
    config: ConfigDict, method: str, plan: ConfigDict, rounds: int | None
) -> MethodSearch:
    grid = list(grid_of(config, method, plan))
    own = own_grid(config, method, plan)
    return MethodSearch(Setting(method, plan, grid[0], own.field, None, rounds), grid, own)


def grid_of(config: ConfigDict, method: str, plan: ConfigDict) -> tuple[float, ...]:
    """Return the step sizes that are tried for a method at first.

    Raises:
      ConfigError: for what is no step size, or none at all.
    """
    listed = _listed(config.compare.grids, method, plan)
    name = "grid" if listed is None else f"grids.{table_key(method)}"
    listed = config.compare.grid if listed is None else listed
    rates = vocabulary.checked(f"compare.{name}", listed, float | tuple[float, ...])
    rates = rates if isinstance(rates, tuple) else (rates,)  # of one step size
    if not rates:
        raise vocabulary.ConfigError(
            f"config.compare.{name}={listed!r} has no step size to try; give some, such as "
            "(0.03, 0.1)"
        )
    return tuple(dict.fromkeys(rates))


def search_rounds(config: ConfigDict) -> int | None:
    """Return the rounds of a search that ends before the runs do; None: it does not.

    Raises:
      ConfigError: if it is below 1 or above ``config.rounds``.
    """
    rounds: int | None = config.compare.search_rounds
    vocabulary.checked("compare.search_rounds", rounds, int | None)
    if rounds is not None and not 1 <= rounds <= config.rounds:
        raise vocabulary.ConfigError(
            f"config.compare.search_rounds={rounds} is not allowed; it must be in "
            f"1..{config.rounds} (config.rounds), or None"
        )
    return None if rounds == config.rounds else rounds


def own_grid(config: ConfigDict, method: str, plan: ConfigDict) -> OwnGrid:
    """Return what is tried of a method's own hyperparameter.

    There is none for methods that the config does not list, and for variants that have set what is
    listed for their algorithm.
    """
    field, values = _listed(config.compare.tuned, method, plan) or (None, ())
    listed = table_key(method) in config.compare.tuned
    fixed = not listed and field in config.compare.variants.get(method, {})
    if field is None or fixed:
        return OwnGrid()
    default = vocabulary.resolve(plan).algorithm[field]
    return OwnGrid(field, default, [value for value in values if value != default])


def _listed(table: ConfigDict, method: str, plan: ConfigDict) -> Any:
    """Return what a table of the config has for a method, or for the algorithm it is made of."""
    own = table.get(table_key(method))
    return table.get(table_key(plan.algorithm.name)) if own is None else own
