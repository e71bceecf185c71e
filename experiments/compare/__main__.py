"""Compare algorithms on one experiment: search step sizes on validation, then several seeds.

python -m experiments.compare --config=experiments/digits.py [--algorithms=pflalign,fedavg,...]
    [--seeds=3] [--workdir=DIR] [--columns=global,seconds,...] [--config.rounds=20 ...]

Every algorithm gets the same partition, rounds and local work, and its own search over the grid of
step sizes (config.compare.grid, or config.compare.grids.ALGORITHM), with the first seed, by the
validation score of the last round. A grid whose best value lies at its edge is extended, up to
config.compare.extensions times. Methods whose papers tune a hyperparameter of their own
(config.compare.tuned) then try its other values with the step size found. The chosen setting runs
with all seeds, on accelerators as one vmapped program (config.compare.seeds_together). With
config.compare.search_rounds what is searched runs for that many rounds only, and what is chosen for
all. Trials that are in the workdir already are not run again, and an interrupted one goes on from
its last checkpoint, so that the same command finishes an interrupted comparison.

At the end it says who is first, who cannot be told from it, the command of experiments.run that
repeats each method's chosen setting, and where its models are (config.compare.keep).

Writes leaderboard.md, leaderboard.csv, leaderboard.png, searches.png (score against step size), and
every trial's files in trials/ (those of a shorter search in search/).
"""

import functools
import sys

from absl import flags

from experiments.compare import columns, leaderboard, repeat
from experiments.compare.comparison import compare
from experiments.compare.entries import missing_rivals, ranked
from experiments.compare.verdict import standings_of, verdict
from pflalign_jax.cli.command import run_command
from pflalign_jax.cli.comparison_command import comparison_of
from pflalign_jax.cli.console import new_console, say_on
from pflalign_jax.cli.flags import CONFIG, parse_config_flags

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", None, "Which to compare; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of the chosen setting.", lower_bound=1)
_COLUMNS = flags.DEFINE_list(
    "columns",
    None,
    f"Of the leaderboard that is printed: {', '.join(columns.NAMES)}, or all; "
    f"default: {', '.join(columns.SHORT)}.",
)


def main(arguments: list[str]) -> None:
    """Compare the algorithms on ``--config``."""
    del arguments
    shown = columns.chosen(_COLUMNS.value)
    config, console = CONFIG.value, new_console()
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    # Methods that were asked for by name must fit, others may be left out.
    left_out: dict[str, str] = {}
    leave_out = None if _ALGORITHMS.value else left_out
    with comparison_of("compare", console) as at:
        entries = compare(config, methods, _SEEDS.value, at.root, at.progress, at.stop, leave_out)
    again = {e.method: repeat.run_command_of(sys.argv[1:], e.fields) for e in ranked(entries)}
    leaderboard.write(at.root, entries, at.command, config, left_out, again)
    say = say_on(console)
    for table in leaderboard.tables(entries, console.width, shown):
        console.print(table)
        console.print()
    console.print(leaderboard.MEANING)
    console.print(verdict(standings_of(entries), entries[0].headline))
    if missing := missing_rivals(entries):
        console.print(
            f"{' and '.join(missing)} not compared: with them in --algorithms one sees whether "
            "a method is better than training alone and than fine-tuned FedAvg"
        )
    for method, reason in left_out.items():
        say(f"{method} was left out: {reason}")
    for line in repeat.told(ranked(entries), again):
        say(line)
    say(
        f"Files: {at.root}/ with leaderboard.md, .csv, .png, searches.png, trials/. A page of "
        f"figures: python -m experiments.report {at.root}"
    )


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
