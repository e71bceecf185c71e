"""Write a page of figures and tables of runs or of a comparison.

python -m experiments.report DIR [DIR ...] [--out=DIR]

Every DIR is the --workdir of experiments.run, finished or not, or of experiments.compare. Runs
that differ in the seed only are one method. Writes report.html, which needs no other file and no
network, and every figure as PNG and PDF.
"""

import pathlib

from absl import flags

from experiments.report.write import write_report
from pflalign_jax.cli.command import run_command

_OUT = flags.DEFINE_string("out", None, "Where the report goes; default: report/ in the first DIR.")


def main(arguments: list[str]) -> None:
    """Write the report of the given directories."""
    out = None if _OUT.value is None else pathlib.Path(_OUT.value)
    print(write_report([pathlib.Path(argument) for argument in arguments], out))


if __name__ == "__main__":
    run_command(main)
