"""Sweep over a grid of config fields: a run of the config's algorithm for every combination.

python -m experiments.sweep --config=experiments/digits.py --sweep.FIELD=VALUE,VALUE,... [...]
    [--seeds=3] [--search] [--shard=i/n] [--workdir=DIR] [--config.rounds=20 ...]

FIELD is any field of the config, and values are as after --config.FIELD=, with commas between
them: --sweep.algorithm.beta=0.5,0.9 --sweep.model.hidden="(50,),(100,)". Every combination runs
with the step size that its config has, or with --search with one that is chosen on validation as
by experiments.compare. Combinations that are in the workdir already are not run again, and an
interrupted one goes on, so that the same command finishes an interrupted sweep, and one with more
values adds what is missing.

With --shard=i/n a process runs the i-th of n parts; all of them are given the same --workdir, on a
file system that they share. Whichever finds all combinations done writes the table; so does the
command without --shard.

With --trials=N Optuna (the extra [optuna]) chooses N combinations, each by what came of those
before, where the grid is too large to run it all. A field then may have a range instead of values,
--sweep.algorithm.beta=0.5..0.99, or 0.01..10:log for logarithms; whole numbers for fields of those.
Several processes with the same command and --workdir share the trials.

Writes sweep.md, sweep.csv, sweep.png (up to three fields; all of --trials), and every
combination's runs in cells/.
The best on validation is named at the end, with the command of experiments.run that repeats it.
"""

import sys

from absl import flags

from experiments.compare.repeat import run_command_of
from experiments.sweep import pages, study
from experiments.sweep.cells import Sweep, check_searches, run_cells, same_headline
from experiments.sweep.grid import (
    arguments_of_run,
    combinations,
    name_outside_functions,
    shard_of,
    take_grid,
)
from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.cli.comparison_command import comparison_of
from pflalign_jax.cli.console import new_console, say_on
from pflalign_jax.cli.flags import CONFIG, WORKDIR, option, parse_config_flags

_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of every combination.", lower_bound=1)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Search every combination's step size, on validation; see experiments.compare."
)
_TRIALS = flags.DEFINE_integer(
    "trials", None, "How many combinations a study by Optuna tries; None: all.", lower_bound=1
)
_SHARD = flags.DEFINE_string("shard", None, "Which part to run, i/n; all parts have one --workdir.")


def main(arguments: list[str]) -> None:
    """Sweep over ``--config``."""
    config, console = CONFIG.value, new_console()
    grid, _ = take_grid(arguments)
    shard = shard_of(_SHARD.value)
    if _SHARD.value is not None and WORKDIR.value is None:
        raise FlagError(f"--shard={_SHARD.value} needs a --workdir, the same for all parts")
    space: study.Space = {}
    if _TRIALS.value is None:
        found = combinations(config, grid, _SEARCH.value)
    else:
        space = study.space_of(config, grid)
        found = study.ends_of(config, space, _SEARCH.value)
    whole = option(sys.argv[1:], "shard")[1]  # the command without its part
    shared = shard.total > 1 or _TRIALS.value is not None
    with comparison_of("sweep", console, whole, shared=shared) as at:
        sweep = Sweep(config, _SEEDS.value, _SEARCH.value, at.root)
        check_searches(sweep, found)
        if _TRIALS.value is None:
            run_cells(sweep, shard.of(found), at.progress, at.stop)
            results = sweep.results(found)
            same_headline(results)
            left = len(found) - len(results)
        else:
            opened = study.open_study(sweep, grid, space)
            results, left = study.run_trials(opened, _TRIALS.value, at.progress, at.stop)
        if not left:
            again = run_command_of(arguments_of_run(whole), pages.ranked(results)[0].fields)
            written = pages.write(at.root, results, grid, at.command, again)
    say = say_on(console)
    if left:
        how = "without --shard" if _SHARD.value is not None else "again"
        say(
            f"{left} combinations are not done; the process that ends last writes the table, or "
            f"the same command {how}"
        )
        return
    console.print(pages.printed(results, grid))
    console.print()
    say(pages.best_of(results))
    say(f"  {again}")
    say(f"Files: {at.root}/ with {', '.join([*written, 'cells/'])}")


def parse(argv: list[str]) -> list[str]:
    """Parse flags; return the command's name and what there is of ``--sweep.FIELD``.

    Raises:
      FlagError: as `parse_config_flags`, and for a grid that cannot be.
    """
    grid, rest = take_grid(argv[1:])
    name_outside_functions(grid)
    parse_config_flags([argv[0], *rest], comparison=True)
    if _TRIALS.value is None:
        study.refuse_ranges(grid)
    elif _SHARD.value is not None:
        raise FlagError(
            f"--shard={_SHARD.value} does not go with --trials, whose trials are not known before; "
            "give the same command without it to several processes, and they share the trials"
        )
    return [argv[0], *(f"--sweep.{name}={','.join(values)}" for name, values in grid.items())]


if __name__ == "__main__":
    run_command(main, parse)
