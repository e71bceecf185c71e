"""Certify the models of a run: bounds on the true error of every client, beside its test error.

python -m experiments.certify WORKDIR [--clients=new] [--scales=0.1,0.5] [--delta=0.05]

Asks for PAC-Bayes and held-out certificates of the new clients and of those that train, and says
which are not valid and why; --config.dataset.bound_fraction=0.2 in the run keeps the examples that
most of them need. Writes certificates/certificates.csv, a row for every client and certificate,
certificates/summary.json and a figure.
"""

import csv
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from rich import box
from rich.table import Table

from experiments.report.certificates import PLACE, draw_certificates, read_certificates
from pflalign_jax.certificates import CertificateError, Certified, certify
from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.cli.console import new_console, say_on
from pflalign_jax.cli.devices import DEVICES, check_devices, use_devices
from pflalign_jax.cli.own_modules import MODULES
from pflalign_jax.cli.plots import save_figure
from pflalign_jax.runs.csv_cells import cell
from pflalign_jax.runs.reopening import reopen

_ROUND = flags.DEFINE_string("round", "last", "last, best (on validation), or a number.")
_CLIENTS = flags.DEFINE_list("clients", ["new", "train"], "Whom to certify.")
_SCALES = flags.DEFINE_list(
    "scales", ["0.5"], "Prior's scales, as factors of the RMS of each layer; several are a union."
)
_DELTA = flags.DEFINE_float("delta", 0.05, "The probability with which a bound may be too low.")
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Epochs of training on the bound.")
_DRAWS = flags.DEFINE_integer("draws", 2, "Models drawn for each example of the bound sample.")

COLUMNS = (
    *("clients", "kind", "model", "split", "client", "n", "bound", "empirical", "kl", "scale"),
    *("test", "test_examples"),
)
"""Of the csv file."""


class Asked(NamedTuple):
    """A question to `certify`."""

    clients: str
    kind: str
    model: str
    split: str

    @property
    def title(self) -> str:
        """Return it in a few words."""
        return f"{self.clients}: {self.kind}, {self.model}, on {self.split}"


QUESTIONS = (
    Asked("new", "pac_bayes", "received", "all"),
    Asked("new", "pac_bayes", "adapted", "all"),
    Asked("new", "pac_bayes", "bound", "all"),
    Asked("new", "holdout", "adapted", "bound"),
    Asked("train", "pac_bayes", "received", "bound"),
    Asked("train", "pac_bayes", "bound", "bound"),
    Asked("train", "holdout", "adapted", "bound"),
)
"""What is asked of every run; those that are not valid for it are refused by `certify`."""


def main(arguments: list[str]) -> None:
    """Certify the run in the given directory."""
    if len(arguments) != 1:
        raise FlagError(f"give the directory of one run; {len(arguments)} were given")
    use_devices(DEVICES.value)
    check_devices()
    workdir, console = pathlib.Path(arguments[0]), new_console()
    which = int(_ROUND.value) if _ROUND.value.isdigit() else _ROUND.value
    experiment, state = reopen(workdir, which, MODULES.value)
    answers = answer(
        experiment.federation,
        state,
        say_on(console),
        _CLIENTS.value,
        scales=_scales(_SCALES.value),
        delta=_DELTA.value,
        local_epochs=_EPOCHS.value,
        draws=_DRAWS.value,
    )
    directory = (workdir / PLACE).parent
    directory.mkdir(exist_ok=True)
    write_rows(workdir / PLACE, answers)
    summary = {asked.title: summary_of(found, seconds) for asked, found, seconds in answers}
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    title = f"{experiment.config.algorithm.name} on {experiment.dataset.name}"
    drawn = draw_certificates(title, read_certificates(workdir))
    save_figure(drawn, directory / "certificates.png")
    console.print(table(title, _DELTA.value, answers))
    say_on(console)(f"Files: {directory}/ with certificates.csv, summary.json, certificates.png")


Answer = tuple[Asked, Certified, float]
"""A question, what was found, and the seconds that it took, compilation included."""


def answer(
    federation: Any, state: Any, say: Any, clients: Sequence[str], **options: Any
) -> list[Answer]:
    """Return the certificates that are valid for a run; ``say`` is told of the others.

    Args:
      federation, state: of the run.
      say: takes a line.
      clients: ``"new"``, ``"train"`` or both.
      options: of `certify`.

    Raises:
      CertificateError: if none is valid.
      FlagError: for other words in ``clients``, or none.
    """
    if not clients or not set(clients) <= {"new", "train"}:
        raise FlagError(f"--clients={','.join(clients)}: choose from new, train")
    answers: list[Answer] = []
    refused: list[CertificateError] = []
    for asked in (question for question in QUESTIONS if question.clients in clients):
        start = time.perf_counter()
        try:
            found = certify(federation, state, **asked._asdict(), **options)
        except CertificateError as error:
            refused.append(error)
            say(f"not certified ({asked.title}): {error}")
            continue
        answers.append((asked, found, time.perf_counter() - start))
    if not answers:
        raise refused[0]
    return answers


def summary_of(found: Certified, seconds: float) -> dict[str, float]:
    """Return a certificate's numbers over clients: means of those with examples, and pooled."""
    some, tested = found.clients.n > 0, found.test_examples > 0
    return {
        "clients": int(some.sum()),
        "examples": float(found.clients.n[some].mean()),
        "bound_mean": float(found.clients.bound[some].mean()),
        "bound_pooled": float(found.pooled.bound),
        "kl_mean": float(found.clients.kl[some].mean()),
        "empirical_mean": float(found.clients.empirical[some].mean()),
        "test_mean": float(found.test[tested].mean()) if tested.any() else float("nan"),
        "below_test": int((found.clients.bound[tested] < found.test[tested]).sum()),
        "seconds_per_100_clients": 100 * seconds / len(some),
    }


def write_rows(path: pathlib.Path, answers: Sequence[Answer]) -> None:
    """Write a row for every client of every certificate as csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for asked, found, _ in answers:
            c = found.clients
            columns = (found.names, c.n, c.bound, c.empirical, c.kl, found.scales, found.test)
            for row in zip(*columns, found.test_examples, strict=True):
                asked_for = (asked.clients, asked.kind, asked.model, asked.split)
                writer.writerow([*asked_for, cell(str(row[0])), *row[1:]])


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
            f"{s['test_mean']:.3f}",
            f"{s['bound_mean'] - s['test_mean']:.3f}",
            str(s["below_test"]),
        )
    return shown


def _scales(texts: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, texts))
    except ValueError as error:
        raise FlagError(f"--scales={','.join(texts)}: {error}; give numbers") from error


if __name__ == "__main__":
    run_command(main)
