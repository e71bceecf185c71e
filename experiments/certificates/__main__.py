"""Certify several methods in one setting: train them with several seeds, and ask for bounds.

python -m experiments.certificates --config=experiments/certificates/base.py[:nist|:intents]
    [--algorithms=pflalign,fedavg,...] [--seeds=3] [--clients=new] [--workdir=DIR]
    [--config.rounds=20 ...]

Every algorithm runs with the step size of the config and each of the seeds, on the same clients;
then `experiments.certify` asks for its certificates. What is in the workdir is not done again, and
an interrupted run goes on from its last checkpoint, so that the same command goes on where it was;
of runs that were certified with fewer questions, only those that are missing are asked.

Writes certificates.md, certificates.csv, and every run's files in trials/.
"""

import functools
import pathlib
import sys

from absl import flags

from experiments.certificates import pages
from experiments.certificates.asking import options_of_flags
from experiments.certificates.cells import certify_methods
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
    "algorithms", None, "Which to certify; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of each.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Certify the algorithms in the setting of ``--config``."""
    del arguments
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    check_devices()
    config, console, options = CONFIG.value, new_console(), options_of_flags()
    root = pathlib.Path(WORKDIR.value or default_workdir("certificates"))
    command = command_of("certificates", sys.argv[1:])
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    files.create_comparison(root)
    with (
        tells_how_to_go_on(root),
        comparison_progress(console) as progress,
        locked(root, progress.say),
        asked_to_stop() as stop,
    ):
        files.write_command(root, command)
        found = certify_methods(config, methods, _SEEDS.value, root, progress, stop, **options)
        text = pages.write(root, found, config, command)
    console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Files: {root}/ with certificates.md, .csv, trials/", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
