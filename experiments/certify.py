"""Certify the models of a run: bounds on the true error of every client, beside its test error.

python -m experiments.certify WORKDIR [--clients=new] [--scales=0.1,0.5] [--delta=0.05]

Asks for PAC-Bayes and held-out certificates of the new clients and of those that train, and says
which are not valid and why; --config.dataset.bound_fraction=0.2 in the run keeps the examples that
most of them need. Writes certificates/certificates.csv, a row for every client and certificate,
certificates/summary.json and a figure.
"""

import pathlib
from collections.abc import Sequence

from absl import flags
from rich import box
from rich.table import Table

from experiments.certificates.asking import Answer, certify_run, options_of_flags, summary_of
from experiments.report.certificates import PLACE
from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.cli.console import new_console, say_on
from pflalign_jax.cli.devices import DEVICES, check_devices, use_devices
from pflalign_jax.cli.own_modules import MODULES
from pflalign_jax.runs.reopening import reopen

_ROUND = flags.DEFINE_string("round", "last", "last, best (on validation), or a number.")


def main(arguments: list[str]) -> None:
    """Certify the run in the given directory."""
    if len(arguments) != 1:
        raise FlagError(f"give the directory of one run; {len(arguments)} were given")
    use_devices(DEVICES.value)
    check_devices()
    options = options_of_flags()
    workdir, console = pathlib.Path(arguments[0]), new_console()
    which = int(_ROUND.value) if _ROUND.value.isdigit() else _ROUND.value
    experiment, state = reopen(workdir, which, MODULES.value)
    title = f"{experiment.config.algorithm.name} on {experiment.dataset.name}"
    answers = certify_run(
        workdir,
        experiment.federation,
        state,
        title,
        say_on(console),
        **options,
    )
    console.print(table(title, options["delta"], answers))
    place = (workdir / PLACE).parent
    say_on(console)(f"Files: {place}/ with certificates.csv, summary.json, certificates.png")


def table(title: str, delta: float, answers: Sequence[Answer]) -> Table:
    """Return the table to print: a row for every certificate."""
    shown = Table(
        title=f"{title}: errors at most, with probability {1 - delta:g}",
        caption="Clients, kind, model and bound sample. mean: of the clients' own bounds; pooled: "
        "one bound on the mean error over all examples; gap: mean - test; above: clients whose "
        "test error is above their bound, by chance of it or of the few test examples",
        box=box.SIMPLE_HEAD,
    )
    for column in ("certificate", "clients", "n", "mean", "pooled", "KL", "test", "gap", "above"):
        first = column == "certificate"
        # Numbers keep their width; the name is broken where a terminal is narrow.
        shown.add_column(
            column, justify="left" if first else "right", min_width=None if first else 5
        )
    for asked, found, seconds in answers:
        s = summary_of(found, seconds)
        shown.add_row(
            asked.title,
            str(s["clients"]),
            f"{s['examples']:.0f}",
            f"{s['bound_mean']:.3f}",
            f"{s['bound_pooled']:.3f}",
            f"{s['kl_mean']:.3g}" if asked.kind == "pac_bayes" else "",
            "" if s["test_mean"] is None else f"{s['test_mean']:.3f}",
            "" if s["test_mean"] is None else f"{s['bound_mean'] - s['test_mean']:.3f}",
            str(s["below_test"]),
        )
    return shown


if __name__ == "__main__":
    run_command(main)
