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
import pathlib
import sys

from absl import flags

from experiments.compare import leaderboard
from experiments.compare.comparison import compare
from pflalign_jax.cli.command import run_command, tells_how_to_go_on
from pflalign_jax.cli.console import comparison_progress, new_console
from pflalign_jax.cli.devices import DEVICES, cache_programs, check_devices, use_devices
from pflalign_jax.cli.flags import (
    CACHE,
    CONFIG,
    WORKDIR,
    command_of,
    default_workdir,
    parse_config_flags,
)
from pflalign_jax.runs import files
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.signals import asked_to_stop

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", None, "Which to compare; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of the chosen setting.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Compare the algorithms on ``--config``."""
    del arguments
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    check_devices()
    config, console = CONFIG.value, new_console()
    root = pathlib.Path(WORKDIR.value or default_workdir("compare"))
    command = command_of("compare", sys.argv[1:])
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    # Methods that were asked for by name must fit, others may be left out.
    left_out: dict[str, str] = {}
    leave_out = None if _ALGORITHMS.value else left_out
    files.create_comparison(root)
    with (
        tells_how_to_go_on(root),
        comparison_progress(console) as progress,
        locked(root, progress.say),
        asked_to_stop() as stop,
    ):
        files.write_command(root, command)
        entries = compare(config, methods, _SEEDS.value, root, progress, stop, leave_out)
    leaderboard.write(root, entries, command, config, left_out)
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
        f"Files: {root}/ with leaderboard.md, .csv, .png, trials/. A page of figures: "
        f"python -m experiments.report {root}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
