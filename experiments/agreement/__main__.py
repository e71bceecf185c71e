"""Train with PFLlib's algorithms and with ours from the same weights and batches, and compare.

python -m experiments.agreement --path=CHECKOUT [--algorithm=fedavg,...|all] [--rounds=3]
    [--model=cnn|mlp]

CHECKOUT is a clone of https://github.com/TsingZ0/PFLlib; its code is imported from there and
runs in this process. It needs PyTorch (the extra ``bench``).
"""

import json
import pathlib
import tempfile

from absl import flags

from experiments.agreement import pfllib
from experiments.agreement.cases import CASES, chosen_names
from experiments.agreement.checkout import read_checkout
from experiments.agreement.comparison import comparisons, table
from experiments.agreement.networks import NETWORKS
from experiments.agreement.ours import Settings
from pflalign_jax.cli.command import FlagError, refuse_arguments, run_command
from pflalign_jax.cli.console import new_console, say_on

_ALGORITHM = flags.DEFINE_list(
    "algorithm", ["fedavg"], f"What to compare: {', '.join(CASES)}; all: each of them."
)
_FRAMEWORKS = {"pfllib": pfllib}
_FRAMEWORK = flags.DEFINE_enum(
    "framework", "pfllib", list(_FRAMEWORKS), "What to compare with; so far there is no other."
)
_PATH = flags.DEFINE_string("path", None, "Folder of a clone of the framework's repository.")
_MODEL = flags.DEFINE_enum("model", "cnn", list(NETWORKS), "What both sides train.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds with all clients.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("clients", 20, "How many there are.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("local_epochs", 1, "Passes over a client's data.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 0.05, "Step size of both sides.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(arguments: list[str]) -> None:
    """Compare, print, and write if asked."""
    refuse_arguments(arguments)
    names, framework = chosen_names(_ALGORITHM.value), _FRAMEWORKS[_FRAMEWORK.value]
    if _PATH.value is None:
        raise FlagError(
            "--path is missing; clone https://github.com/TsingZ0/PFLlib and give its folder"
        )
    checkout = read_checkout(_PATH.value)
    for name in names:
        framework.check_server(checkout, CASES[name].theirs)
    console, rows = new_console(), []
    settings = Settings(_ROUNDS.value, _RATE.value, _EPOCHS.value, batch_size=10)
    with tempfile.TemporaryDirectory(prefix="agreement_") as folder:
        federation = framework.prepare(
            checkout, pathlib.Path(folder), _CLIENTS.value, NETWORKS[_MODEL.value], settings
        )
        for row in comparisons(framework, federation, names):
            rows.append(row)
            console.print(f"{len(rows)}. {row.algorithm} done", style="dim")
    # A table that is broken to a narrow terminal would be no markdown.
    new_console(width=max(console.width, 110)).print(table(rows))
    say = say_on(console)
    for name in names:
        if CASES[name].departure:
            say(f"* {name}, in PFLlib: {CASES[name].departure}.")
    if _JSON.value:
        figures = [row._asdict() for row in rows]
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
