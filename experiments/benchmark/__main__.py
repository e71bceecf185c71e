"""Time rounds of FedAvg and pFLAlign, and compare with the machine's peak and with other libraries.

python -m experiments.benchmark [--workload=cnn,mlp,...|all] [--against=fedjax,torch]
    [--scale=chunk,devices,clients,cohort] [--json=FILE]

All contenders take turns in one process, a round each; reported are medians over rounds, and the
least and the most. Data are noise, so that nothing needs to be downloaded.
"""

import itertools
import json
import pathlib
import tempfile
from typing import Any

from absl import app, flags, logging
from rich.console import Console

from experiments.benchmark.measuring import measure, scaling
from experiments.benchmark.peers import PEERS, PeerError
from experiments.benchmark.tables import main_table, scaling_table
from experiments.benchmark.workloads import WORKLOADS
from pflalign_jax.cli.devices import DEVICES, DeviceError, require_devices, use_devices
from pflalign_jax.cli.errors import fail

_WORKLOADS = flags.DEFINE_list("workload", ["cnn"], f"What to train: {', '.join(WORKLOADS)}; all.")
_AGAINST = flags.DEFINE_list("against", [], f"Other libraries to compare with: {', '.join(PEERS)}.")
_SCALE = flags.DEFINE_list("scale", [], "Tables over chunk, devices, clients or cohort.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
_CHUNK = flags.DEFINE_integer("client_chunk", None, "Clients vmapped at a time.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each contender.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Measure, print, and write if asked."""
    del argv
    logging.set_verbosity(logging.WARNING)
    names = list(WORKLOADS) if _WORKLOADS.value == ["all"] else _WORKLOADS.value
    for flag, values, known in (
        ("workload", names, WORKLOADS),
        ("against", _AGAINST.value, PEERS),
        ("scale", _SCALE.value, ("chunk", "devices", "clients", "cohort")),
    ):
        for value in values:
            if value not in known:
                raise app.UsageError(f"--{flag}={value} is unknown; choose from {list(known)}")
    use_devices(DEVICES.value)
    try:
        require_devices()
    except DeviceError as error:
        fail(str(error))
    console = Console()
    figures: dict[str, Any] = {"workloads": [], "scaling": {}}
    for name in names:
        try:
            row = measure(name, _ROUNDS.value, _CHUNK.value, _AGAINST.value)
        except PeerError as error:
            raise app.UsageError(str(error)) from error
        figures["workloads"].append(row)
        console.print(main_table(row))
    for over, name in itertools.product(_SCALE.value, names):
        with tempfile.TemporaryDirectory() as folder:
            rows = scaling(over, name, _ROUNDS.value, folder)
        figures["scaling"][f"{name} over {over}"] = rows
        console.print(scaling_table(f"pflalign on {name} over {over}", rows))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
