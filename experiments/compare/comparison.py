"""A comparison: for each method search step sizes on validation, then run several seeds."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.compare import leaderboard
from experiments.compare.trials import Setting, Trial, run_trials
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs.build import Experiment, build, build_dataset


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
    for _ in range(extensions):
        rates = sorted(trials)
        best = max(rates, key=lambda rate: trials[rate].score)
        if len(rates) < 2 or best not in (rates[0], rates[-1]):
            break
        inner = rates[1] if best == rates[0] else rates[-2]
        beyond = float(f"{best * best / inner:.2g}")
        trials[beyond] = run(beyond)
    return max(trials.values(), key=lambda t: t.score), [trials[r] for r in sorted(trials)]


def settings(config: ConfigDict, method: str) -> ConfigDict:
    """Return the config of a method: an algorithm's name, or a variant of one.

    Raises:
      ConfigError: for a name that is neither.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        variants = dict(config.compare.variants)
        fields = dict(variants.get(method, {"name": method}))
        config.algorithm.update(fields)
        del config["compare"]
    if method not in variants and method not in vocabulary.FACTORIES["algorithm"]:
        known = [*vocabulary.FACTORIES["algorithm"], *variants]
        raise vocabulary.ConfigError(
            f"algorithm {method!r} is unknown{vocabulary.nearest(method, known)}"
        )
    return config


def compare(
    config: ConfigDict,
    methods: list[str],
    seeds: int,
    root: pathlib.Path,
    say: Callable,
    leave_out: dict[str, str] | None = None,
    stop: Callable[[], int] = lambda: 0,
    count: Callable[[int, int], None] = lambda expected, done: None,
) -> list[leaderboard.Entry]:
    """Run what is missing of a comparison and return its entries, one per method.

    Args:
      config: the experiment.
      methods: names of algorithms and variants.
      seeds: how many of the chosen setting.
      root: the comparison's directory.
      say: called with a line before every trial.
      leave_out: gets the methods that do not fit the model or the data, with the reason; None:
        such a method is an error.
      stop: the signal to stop for, 0 as long as there is none.
      count: called with how many rounds more are expected than before, and how many more are done.

    Raises:
      ConfigError: for a method that cannot be run, before any is.
    """
    plans = {method: settings(config, method) for method in methods}
    dataset = build_dataset(vocabulary.resolve(plans[methods[0]]))
    for method, plan in list(plans.items()):
        try:
            build(plan, root / "unused", dataset)
        except vocabulary.ConfigError as error:
            if leave_out is None:
                raise vocabulary.ConfigError(f"{method}: {error}") from error
            leave_out[method] = str(error)
            del plans[method]
    if not plans:
        raise vocabulary.ConfigError(f"no method fits: {leave_out}")
    vocabulary.checked("compare.seeds_together", config.compare.seeds_together, bool | None)
    shorter, whole = search_rounds(config), config.rounds

    built: dict[str, Experiment] = {}

    def run(setting, seeds=(0,)):
        counted = 0

        def on_round(done, row):
            nonlocal counted
            counted += 1
            count(0, 1)

        say(f"{setting}, seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}")
        together = config.compare.seeds_together
        trials = run_trials(setting, seeds, root, dataset, stop, say, together, on_round, built)
        count(0, len(seeds) * (setting.rounds or whole) - counted)  # what was done before
        return trials

    searches = [_search_of(config, method, plan, shorter) for method, plan in plans.items()]
    repeated = range(0 if shorter else 1, seeds)
    for _, grid, _, values in searches:
        count((len(grid) + len(values)) * (shorter or whole) + len(repeated) * whole, 0)
    entries = []
    for setting, grid, default, values in searches:
        built.clear()

        def tried(rate, setting=setting, grid=grid):
            count(0 if rate in grid else shorter or whole, 0)
            return run(setting._replace(learning_rate=rate))[0]

        best, searched = search(tried, grid, config.compare.extensions)
        found = setting._replace(learning_rate=best.learning_rate)
        owns = [run(found._replace(own=own))[0] for own in values]
        tuned = (setting.field, default, values) if owns else None
        best = max([best, *owns], key=lambda trial: trial.score)
        chosen = found._replace(own=best.own, rounds=None)
        repeats = [] if shorter else [best]
        repeats += run(chosen, repeated) if repeated else []
        entries.append(leaderboard.entry(setting.method, best, searched, tuned, repeats))
    return entries


def _search_of(config, method, plan, rounds):
    """Return a method's setting with its first step size, its grid, and `own_grid`'s values."""
    grid = list(dict.fromkeys(_listed(config.compare.grids, method, plan) or config.compare.grid))
    field, default, values = own_grid(config, method, plan)
    return Setting(method, plan, grid[0], field, None, rounds), grid, default, values


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


def own_grid(
    config: ConfigDict, method: str, plan: ConfigDict
) -> tuple[str | None, float | None, list[float]]:
    """Return a method's own hyperparameter, its default and its other values to try.

    There is none for methods that the config does not list, and for variants that have set what is
    listed for their algorithm.
    """
    field, values = _listed(config.compare.tuned, method, plan) or (None, ())
    fixed = method not in config.compare.tuned and field in config.compare.variants.get(method, {})
    if field is None or fixed:
        return None, None, []
    default = vocabulary.resolve(plan).algorithm[field]
    return field, default, [value for value in values if value != default]


def _listed(table, method, plan):
    """Return what a table of the config has for a method, or for the algorithm it is made of."""
    return dict(table).get(method) or dict(table).get(plan.algorithm.name)
