"""Compare algorithms on one experiment: search step sizes on validation, then several seeds.

python -m experiments.compare --config=experiments/digits.py [--algorithms=pflalign,fedavg,...]
    [--seeds=3] [--workdir=DIR] [--config.rounds=20 ...]

Every algorithm gets the same partition, rounds and local work, and its own search over the grid of
step sizes (config.compare.grid, or config.compare.grids.ALGORITHM), with the first seed, by the
validation score of the last round. A grid whose best value lies at its edge is extended, up to
config.compare.extensions times. Methods whose papers tune a hyperparameter of their own
(config.compare.tuned) then try its other values with the step size found. The chosen setting runs
with all seeds, on accelerators as one vmapped program (config.compare.seeds_together). With
config.compare.search_rounds what is searched runs for that many rounds only, and what is chosen for
all. Trials that are in the workdir already are not run again, and an interrupted one goes on from
its last checkpoint, so that the same command finishes an interrupted comparison.

Writes leaderboard.md, leaderboard.csv, leaderboard.png, and every trial's files in trials/ (those
of a shorter search in search/).
"""

import functools

from absl import flags

from experiments.compare import leaderboard
from experiments.compare.comparison import compare
from pflalign_jax.cli.command import run_command
from pflalign_jax.cli.comparison_command import comparison_of
from pflalign_jax.cli.console import new_console
from pflalign_jax.cli.flags import CONFIG, parse_config_flags

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", None, "Which to compare; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of the chosen setting.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Compare the algorithms on ``--config``."""
    del arguments
    config, console = CONFIG.value, new_console()
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    # Methods that were asked for by name must fit, others may be left out.
    left_out: dict[str, str] = {}
    leave_out = None if _ALGORITHMS.value else left_out
    with comparison_of("compare", console) as at:
        entries = compare(config, methods, _SEEDS.value, at.root, at.progress, at.stop, leave_out)
    leaderboard.write(at.root, entries, at.command, config, left_out)
    console.print(leaderboard.table(entries))
    if missing := leaderboard.missing_rivals(entries):
        console.print(
            f"{' and '.join(missing)} not compared: with them in --algorithms one sees whether "
            "a method is better than training alone and than fine-tuned FedAvg",
            soft_wrap=True,
        )
    for method, reason in left_out.items():
        console.print(f"{method} was left out: {reason}", soft_wrap=True)
    console.print(
        f"Files: {at.root}/ with leaderboard.md, .csv, .png, trials/. A page of figures: "
        f"python -m experiments.report {at.root}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
