"""Compare algorithms on one experiment: search step sizes on validation, then several seeds.

python -m experiments.compare --config=experiments/digits.py [--algorithms=pflalign,fedavg,...]
    [--seeds=3] [--workdir=DIR] [--config.rounds=20 ...]

Every algorithm gets the same partition, rounds and local work, and its own search over the grid of
step sizes (config.compare.grid, or config.compare.grids.ALGORITHM), with the first seed, by the
validation score of the last round. A grid whose best value lies at its edge is extended, up to
config.compare.extensions times. Methods whose papers tune a hyperparameter of their own
(config.compare.tuned) then try its other values with the step size found. The chosen setting runs
with all seeds. Trials that are in the workdir already are not run again, and an interrupted one
goes on from its last checkpoint, so that the same command finishes an interrupted comparison.

Writes leaderboard.md, leaderboard.csv, leaderboard.png, and every trial's files in trials/.

"""

import argparse
import json
import math
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as vocabulary
from experiments import leaderboard, resume, training, workdir
from experiments.devices import DEVICES, cache_programs, use_devices
from experiments.run import USER_ERRORS, default_workdir, fail, parse_flags
from experiments.stop import StoppedError, asked_to_stop, locked

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", None, "Which to compare; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of the chosen setting.", lower_bound=1)

CHOSEN_BY = training.HEADLINE.format(split="validation")


class Trial(NamedTuple):
    """One run of a comparison.

    Attributes:
      method: its name in the table: an algorithm, or one of ``config.compare.variants``.
      learning_rate: step size.
      own: value of the method's own hyperparameter; None for its default.
      seed: of the run.
      path: its directory.
      score: validation headline of the last round; -inf if training diverged.
    """

    method: str
    learning_rate: float
    own: float | None
    seed: int
    path: pathlib.Path
    score: float


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

    Raises:
      ConfigError: for a method that cannot be run, before any is.
    """
    plans = {method: settings(config, method) for method in methods}
    dataset = training.build_dataset(vocabulary.resolve(plans[methods[0]]))
    for method, plan in list(plans.items()):
        try:
            training.build(plan, root / "unused", dataset)
        except vocabulary.ConfigError as error:
            if leave_out is None:
                raise vocabulary.ConfigError(f"{method}: {error}") from error
            leave_out[method] = str(error)
            del plans[method]
    if not plans:
        raise vocabulary.ConfigError(f"no method fits: {leave_out}")
    entries = []
    for number, (method, plan) in enumerate(plans.items(), 1):
        grid = list(_listed(config.compare.grids, method, plan) or config.compare.grid)
        field, default, values = own_grid(config, method, plan)

        def run(rate, own=None, seed=0, method=method, plan=plan, number=number, field=field):
            of = "" if own is None else f", {field} {own:g}"
            say(f"{number}/{len(plans)} {method}, step size {rate:g}{of}, seed {seed}")
            return _trial(plan, method, rate, field, own, seed, root, dataset, stop, say)

        best, searched = search(run, grid, config.compare.extensions)
        others = [run(best.learning_rate, own) for own in values]
        tuned = (field, default, values) if others else None
        best = max([best, *others], key=lambda trial: trial.score)
        repeats = [run(best.learning_rate, best.own, seed) for seed in range(1, seeds)]
        entries.append(leaderboard.entry(method, best, searched, tuned, [best, *repeats]))
    return entries


def own_grid(
    config: ConfigDict, method: str, plan: ConfigDict
) -> tuple[str | None, float | None, list[float]]:
    """Return a method's own hyperparameter, its default and its other values to try.

    There is none for methods that the config does not list, and for variants that have set it.
    """
    field, values = _listed(config.compare.tuned, method, plan) or (None, ())
    if field is None or field in dict(config.compare.variants.get(method, {})):
        return None, None, []
    default = vocabulary.resolve(plan).algorithm[field]
    return field, default, [value for value in values if value != default]


def _listed(table, method, plan):
    """Return what a table of the config has for a method, or for the algorithm it is made of."""
    return dict(table).get(method) or dict(table).get(plan.algorithm.name)


def _trial(plan, method, rate, field, own, seed, root, dataset, stop, say):
    """Run one trial or go on with it, unless its directory says that it was run."""
    of = "" if own is None else f"-{field}-{own:g}"
    path = root / "trials" / f"{method}-{rate:g}{of}-{seed}"
    plan = plan.copy_and_resolve_references()
    with plan.unlocked():
        plan.algorithm.learning_rate, plan.seed = rate, seed
        if own is not None:
            plan.algorithm[field] = own
    wanted = json.loads(json.dumps(vocabulary.resolve(plan).to_dict()))
    if (path / "summary.json").exists():
        found = json.loads((path / "config.json").read_text())
        if found != wanted:
            differ = sorted(resume.leaves(found).items() ^ resume.leaves(wanted).items())
            raise workdir.WorkdirError(
                f"{path} was run with another config; it differs in "
                f"{', '.join(sorted({name for name, _ in differ}))}. Choose another --workdir"
            )
    else:
        if not resume.unfinished(path):
            shutil.rmtree(path, ignore_errors=True)  # without a checkpoint it starts again
        workdir.create(path, go_on=True)
        experiment = training.build(plan, path / "client_states", dataset)
        start, checkpoints = resume.prepare(path, experiment, True, say), path / "checkpoints"
        try:
            training.train(
                experiment, path, start=start, checkpoints=checkpoints, stop=stop, save_last=False
            )
        except training.DivergedError:
            workdir.write_json(path / "summary.json", {"diverged": True})
        shutil.rmtree(checkpoints, ignore_errors=True)  # states of all trials would be too much
    summary = json.loads((path / "summary.json").read_text())
    score = -math.inf if "diverged" in summary else summary["last"].get(CHOSEN_BY)
    if score is None:
        raise vocabulary.ConfigError(
            "there is no validation split to choose step sizes by; set "
            "config.dataset.validation_fraction or validation_count"
        )
    return Trial(method, rate, own, seed, path, score)


def command_of(arguments: list[str]) -> str:
    """Return the command that does a comparison again, in a directory of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", "-workdir")
    _, rest = parser.parse_known_args(arguments)
    return shlex.join(["python", "-m", "experiments.compare", *rest])


def main(argv: list[str]) -> None:
    """Compare the algorithms on ``--config``."""
    del argv
    logging.set_verbosity(logging.WARNING)
    use_devices(DEVICES.value)
    cache_programs(flags.FLAGS.compilation_cache)
    config, console = flags.FLAGS.config, Console()
    file = flags.FLAGS["config"].config_filename
    root = pathlib.Path(flags.FLAGS.workdir or default_workdir(file, "compare"))
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    try:
        with console.status("") as status:

            def say(text):
                status.update(text)
                if not console.is_terminal:
                    console.print(text)

            left_out = None if _ALGORITHMS.value else {}
            root.mkdir(parents=True, exist_ok=True)
            with locked(root, say), asked_to_stop() as stop:
                entries = compare(config, methods, _SEEDS.value, root, say, left_out, stop)
        leaderboard.write(root, entries, command_of(sys.argv[1:]), config, left_out)
    except USER_ERRORS as error:
        fail(str(error))
    except StoppedError as stopped:
        fail(f"{stopped}; go on with the same command and --workdir={root}", 128 + stopped.signum)
    except KeyboardInterrupt:
        fail(f"interrupted; go on with the same command and --workdir={root}", 130)
    console.print(leaderboard.table(entries))
    for method, reason in (left_out or {}).items():
        console.print(f"{method} was left out: {reason}", markup=False, soft_wrap=True)
    console.print(f"Files: {root}/ with leaderboard.md, .csv, .png, trials/", soft_wrap=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
