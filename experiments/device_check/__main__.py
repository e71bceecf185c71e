"""Test and time an accelerator in ten minutes; in seconds, and much less, on a CPU.

python -m experiments.device_check --json=FILE [--seconds=540] [--size=small|full]
    [--sections=NAME,NAME,...]

Results of all algorithms against the CPU's; FedAvg and pFLAlign on several models; clients at a
time; many clients; precisions; kinds of convolution; seeds as one program; PyTorch, where it is
installed. A section that fails is reported and the others go on; FILE is whole after every row. It
ends with status 1 if a section failed or was cut for lack of time, or results were not equal.
"""

import pathlib
import sys
import tempfile

import jax
from absl import flags

from experiments.device_check.report import Report
from experiments.device_check.sections import check, chosen_sections
from experiments.device_check.sizes import FULL, SMALL
from pflalign_jax.cli.command import refuse_arguments, run_command
from pflalign_jax.cli.console import new_console, say_on
from pflalign_jax.cli.devices import cache_programs, check_devices, use_devices

_JSON = flags.DEFINE_string("json", None, "Write the figures to this file, row by row.")
_SECONDS = flags.DEFINE_float(
    "seconds", 540.0, "No row is begun after these; a row may take a minute.", lower_bound=0
)
_SIZE = flags.DEFINE_enum(
    "size", None, ["small", "full"], "How much is done; default: small on a CPU, else full."
)
_SECTIONS = flags.DEFINE_list("sections", None, "Only these, by their names; default: all.")


def main(arguments: list[str]) -> None:
    """Check, and end with status 1 if something is wrong."""
    refuse_arguments(arguments)
    use_devices(1)  # of a CPU; the figures are those of one device
    check_devices()
    sizes = {"small": SMALL, "full": FULL}
    default = "small" if jax.devices()[0].platform == "cpu" else "full"
    sections = chosen_sections(sizes[_SIZE.value or default], _SECTIONS.value)
    file = None if _JSON.value is None else pathlib.Path(_JSON.value)
    report = Report(file, _SECONDS.value, say_on(new_console()))
    # What a program holds is told by compiling it again, which then costs nothing.
    with tempfile.TemporaryDirectory(prefix="device_check_") as folder:
        cache_programs(folder)
        failures = check(sections, report)
    if failures:
        print("\n".join(["FAILED", *failures]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
