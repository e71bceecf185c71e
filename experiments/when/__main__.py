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

from absl import flags

from experiments.when import pages
from experiments.when.base import RIVALS
from experiments.when.cells import MAPS, Cell, cells_of, run_cell
from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.cli.comparison_command import comparison_of
from pflalign_jax.cli.console import new_console
from pflalign_jax.cli.flags import CONFIG, parse_config_flags

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
    found: dict[str, list[Cell]] = {}
    with comparison_of("when", console) as at:
        for name in dict.fromkeys(_MAPS.value):
            found[name] = [
                run_cell(config, values, rivals, _SEEDS.value, at.root, at.progress, at.stop)
                for values in cells_of(name, config)
            ]
            # After every map, so that there is something to look at.
            pages.write(at.root, found, at.command)
    console.print(f"Files: {at.root}/ with when.md, when.csv, when.png, cells/", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
