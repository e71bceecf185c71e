"""The certificates of a method with a seed: trained, certified, and read again."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.certificates.asking import (
    NOTHING,
    SUMMARY,
    Summary,
    certify_run,
    questions_about,
)
from experiments.compare.comparison import run_counted, settings
from experiments.compare.trials import Setting, TrialContext, end_of
from experiments.report.certificates import PLACE
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files, read_types
from pflalign_jax.runs.build import Experiment, build_dataset, check_experiment

Cell = Mapping[str, Mapping[str, Any]]
"""The certificates of a run by their titles, numbers over clients as of `summary_of`; empty where
training diverged."""


def certify_methods(
    config: ConfigDict,
    methods: Sequence[str],
    seeds: int,
    root: pathlib.Path,
    progress: ComparisonProgress | None = None,
    stop: Callable[[], int] = lambda: 0,
    **options: Any,
) -> dict[str, list[Cell]]:
    """Return the certificates of methods, one for each seed; what is in the directory stays.

    Step sizes are those of the config: nothing is searched.

    Args:
      config: the experiment.
      methods: names of algorithms and variants.
      seeds: how many, 0, 1, ...; the data are those of the config's for all.
      root: a run for each method and seed is in its ``trials``.
      progress, stop: as in `experiments.compare.comparison.compare`.
      options: of `experiments.certificates.asking.certify_run`.

    Raises:
      ConfigError: for a method that cannot be run, before any is.
      WorkdirError: if a run was made with another config, or certified with other options.
    """
    progress = ComparisonProgress() if progress is None else progress
    plans = {method: settings(config, method) for method in methods}
    dataset = build_dataset(vocabulary.resolve(plans[methods[0]]))
    for plan in plans.values():
        check_experiment(plan, dataset)
    context = TrialContext(
        root, dataset, False, progress.say, stop, lambda done, row: progress.add(1), keep="all"
    )
    progress.expect(len(methods) * seeds * config.rounds)
    found: dict[str, list[Cell]] = {}
    for method, plan in plans.items():
        rate = vocabulary.resolve(plan).algorithm.learning_rate
        setting = Setting(method, plan, rate)
        built: dict[str, Experiment] = {}  # seeds share compiled programs
        found[method] = [
            certified(setting, seed, context, built, progress, options) for seed in range(seeds)
        ]
    return found


def certified(
    setting: Setting,
    seed: int,
    context: TrialContext,
    built: dict[str, Experiment],
    progress: ComparisonProgress,
    options: Mapping[str, Any],
) -> Cell:
    """Return the certificates of a trial, which is run and asked first for what is missing."""
    path = setting.path(context.root, seed)
    run_counted(setting, [seed], context, built, progress)
    if files.has_diverged(files.read_summary(path)):
        return {}
    summary = path / PLACE.parent / SUMMARY
    known = read(summary, options) if summary.exists() else NOTHING
    if known.missing(questions_about(options["clients"])):
        experiment, state = end_of(setting, seed, context, built)
        progress.say(f"certificates of {setting.method}, seed {seed}")
        title = f"{setting.method} on {experiment.dataset.name}"
        certify_run(path, experiment.federation, state, title, progress.say, known, **options)
    return read(summary, options).certificates


def read(summary: pathlib.Path, options: Mapping[str, Any]) -> Summary:
    """Return what is in a file of `certify_run`.

    Raises:
      WorkdirError: if it cannot be read, or they were asked for with other options.
    """
    kinds = {"options": dict, "certificates": dict}
    try:
        found = read_types.read_object(summary, kinds, required=True)
        read_types.check_fields(found, {"refused": dict})  # older files have none
    except (OSError, read_types.ReadError) as error:
        raise files.WorkdirError(
            f"{summary} cannot be read ({error}); put it back, or delete {summary.parent}"
        ) from error
    if found["options"] != files.as_written(options):
        raise files.WorkdirError(
            f"{summary} has certificates with other options, {found['options']}; delete "
            f"{summary.parent}, or choose another --workdir"
        )
    return Summary(found["certificates"], found.get("refused", {}))
