"""Time rounds of FedAvg and pFLAlign, and compare with the machine's peak and with other libraries.

python -m experiments.benchmark [--workload=cnn,mlp,...|lora|algorithms|all]
    [--against=fedjax,torch,peft]
    [--scale=chunk,devices,clients,cohort] [--json=FILE]

All contenders take turns in one process, a round each; reported are medians over rounds, and the
least and the most. Data are noise, so that nothing needs to be downloaded.
"""

import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

from absl import flags

from experiments.benchmark.field import FIELD, field_figures
from experiments.benchmark.measuring import SCALES, measure, scaling
from experiments.benchmark.peers import PEERS
from experiments.benchmark.tables import field_table, main_table, scaling_table
from experiments.benchmark.workloads import LORA, WORKLOADS
from pflalign_jax.cli.command import FlagError, refuse_arguments, run_command
from pflalign_jax.cli.console import new_console
from pflalign_jax.cli.devices import DEVICES, check_devices, use_devices

_WORKLOADS = flags.DEFINE_list(
    "workload",
    ["cnn"],
    f"What to train: {', '.join([*WORKLOADS, 'lora', 'all'])}; "
    "algorithms: all algorithms on two small models.",
)
_AGAINST = flags.DEFINE_list("against", [], f"Other libraries to compare with: {', '.join(PEERS)}.")
_SCALE = flags.DEFINE_list("scale", [], "Tables over chunk, devices, clients or cohort.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
_CHUNK = flags.DEFINE_integer("client_chunk", None, "Clients vmapped at a time.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each contender.", lower_bound=1)


def check_choices(flag: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Refuse values of a flag that are not known.

    Raises:
      FlagError: naming the first.
    """
    for value in values:
        if value not in known:
            raise FlagError(f"--{flag}={value} is unknown; choose from {list(known)}")


def main(arguments: list[str]) -> None:
    """Measure, print, and write if asked."""
    refuse_arguments(arguments)
    groups = {"all": list(WORKLOADS), "lora": list(LORA), "algorithms": []}
    names = [name for given in _WORKLOADS.value for name in groups.get(given, [given])]
    check_choices("workload", names, [*WORKLOADS, *groups])
    check_choices("against", _AGAINST.value, PEERS)
    check_choices("scale", _SCALE.value, SCALES)
    use_devices(DEVICES.value)
    check_devices()
    console = new_console()
    figures: dict[str, Any] = {"workloads": [], "scaling": {}}
    if "algorithms" in _WORKLOADS.value:
        figures["algorithms"] = {
            name: field_figures(workload, _ROUNDS.value) for name, workload in FIELD.items()
        }
        console.print(field_table(figures["algorithms"]))
    for name in names:
        row = measure(name, _ROUNDS.value, _CHUNK.value, _AGAINST.value)
        figures["workloads"].append(row)
        console.print(main_table(row))
    for over, name in itertools.product(_SCALE.value, names):
        with tempfile.TemporaryDirectory() as folder:
            rows = scaling(over, name, _ROUNDS.value, folder)
        figures["scaling"][f"{name} over {over}"] = rows
        console.print(scaling_table(f"pflalign on {name} over {over}", rows))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
