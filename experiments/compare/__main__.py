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

import pathlib
import sys

from absl import app, flags, logging
from rich.console import Console

from experiments.compare import leaderboard
from experiments.compare.comparison import compare
from pflalign_jax.cli.console import comparison_progress
from pflalign_jax.cli.devices import DEVICES, cache_programs, require_devices, use_devices
from pflalign_jax.cli.errors import fail
from pflalign_jax.cli.flags import (
    CACHE,
    CONFIG,
    USER_ERRORS,
    WORKDIR,
    command_of,
    default_workdir,
    parse_flags,
)
from pflalign_jax.runs import files
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.signals import StoppedError, asked_to_stop

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", None, "Which to compare; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of the chosen setting.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Compare the algorithms on ``--config``."""
    del argv
    logging.set_verbosity(logging.WARNING)
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    config, console = CONFIG.value, Console()
    root = pathlib.Path(WORKDIR.value or default_workdir("compare"))
    command = command_of("compare", sys.argv[1:])
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    try:
        require_devices()
        with comparison_progress(console) as (say, count):
            left_out: dict[str, str] | None = None if _ALGORITHMS.value else {}
            root.mkdir(parents=True, exist_ok=True)
            with locked(root, say), asked_to_stop() as stop:
                files.write_text(root / "command.txt", command + "\n")
                entries = compare(config, methods, _SEEDS.value, root, say, left_out, stop, count)
        leaderboard.write(root, entries, command, config, left_out)
    except USER_ERRORS as error:
        fail(str(error))
    except StoppedError as stopped:
        fail(f"{stopped}; go on with the same command and --workdir={root}", 128 + stopped.signum)
    except KeyboardInterrupt:
        fail(f"interrupted; go on with the same command and --workdir={root}", 130)
    console.print(leaderboard.table(entries))
    if missing := leaderboard.missing_rivals(entries):
        console.print(
            f"{' and '.join(missing)} not compared: with them in --algorithms one sees whether "
            "a method is better than training alone and than fine-tuned FedAvg", soft_wrap=True
        )  # fmt: skip
    for method, reason in (left_out or {}).items():
        console.print(f"{method} was left out: {reason}", markup=False, soft_wrap=True)
    console.print(f"Files: {root}/ with leaderboard.md, .csv, .png, trials/. A page of figures: "
                  f"python -m experiments.report {root}", soft_wrap=True)  # fmt: skip


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
