"""Map where gradient alignment pays: comparisons over data and ways to train, as heat maps.

python -m experiments.when --config=experiments/when/base.py [--maps=data,noise,work,horizon]
    [--seeds=3] [--workdir=DIR] [--config.rounds=20 ...]

A map has two fields of the config that vary, all else as in --config. In each of its cells methods
are compared as by `experiments.compare`: step sizes chosen on validation by each method, also that
of the last adaptation, then several seeds. A cell has the paired gain of pFLAlign (as published,
with our extensions, and with each of its mechanisms alone) over the best of local training,
fine-tuned FedAvg, FedAvgM and Ditto on validation, with its interval. Cells that are in the workdir
are not compared again, so that the same command goes on where it was.

Writes when.csv, when.md, when.png, and every cell's comparison in cells/.
"""

import functools
import pathlib
import sys

from absl import flags

from experiments.when import pages
from experiments.when.base import RIVALS
from experiments.when.cells import MAPS, Cell, cells_of, run_cell
from pflalign_jax.cli.command import FlagError, run_command, tells_how_to_go_on
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

_MAPS = flags.DEFINE_list("maps", list(MAPS), f"Which maps to make: {', '.join(MAPS)}.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of each chosen setting.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Make the maps of ``--config``."""
    del arguments
    if unknown := sorted(set(_MAPS.value) - MAPS.keys()):
        raise FlagError(f"--maps={unknown[0]} is unknown; choose from {list(MAPS)}")
    config, console = CONFIG.value, new_console()
    rivals = [method for method in config.compare.algorithms if method in RIVALS]
    if not rivals:
        raise FlagError(
            f"--config.compare.algorithms={config.compare.algorithms} has none of {RIVALS}, over "
            "which gains are; add one"
        )
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    check_devices()
    root = pathlib.Path(WORKDIR.value or default_workdir("when"))
    command = command_of("when", sys.argv[1:])
    found: dict[str, list[Cell]] = {}
    files.create_comparison(root)
    with (
        tells_how_to_go_on(root),
        comparison_progress(console) as progress,
        locked(root, progress.say),
        asked_to_stop() as stop,
    ):
        files.write_command(root, command)
        for name in dict.fromkeys(_MAPS.value):
            found[name] = [
                run_cell(config, values, rivals, _SEEDS.value, root, progress, stop)
                for values in cells_of(name, config)
            ]
            # After every map, so that there is something to look at.
            pages.write(root, found, command)
    console.print(f"Files: {root}/ with when.md, when.csv, when.png, cells/", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
