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

from absl import flags

from experiments.certificates import pages
from experiments.certificates.asking import options_of_flags
from experiments.certificates.cells import certify_methods
from pflalign_jax.cli.command import run_command
from pflalign_jax.cli.comparison_command import comparison_of
from pflalign_jax.cli.console import new_console
from pflalign_jax.cli.flags import CONFIG, parse_config_flags

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", None, "Which to certify; default: config.compare.algorithms."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of each.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Certify the algorithms in the setting of ``--config``."""
    del arguments
    config, console, options = CONFIG.value, new_console(), options_of_flags()
    methods = list(dict.fromkeys(_ALGORITHMS.value or config.compare.algorithms))
    with comparison_of("certificates", console) as at:
        found = certify_methods(
            config, methods, _SEEDS.value, at.root, at.progress, at.stop, **options
        )
        text = pages.write(at.root, found, config, at.command)
    console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Files: {at.root}/ with certificates.md, .csv, trials/", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, functools.partial(parse_config_flags, comparison=True))
