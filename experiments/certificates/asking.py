"""What is asked of a run, by which flags, and what is written of the answers."""

import csv
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.report.certificates import PLACE, draw_certificates, read_certificates
from pflalign_jax.certificates import CertificateError, Certified, certify
from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.plots import save_figure
from pflalign_jax.runs import files
from pflalign_jax.runs.csv_cells import cell

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


SUMMARY = "summary.json"
"""The file beside it: what was asked for, and the numbers of every certificate over clients."""


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


Answer = tuple[Asked, Certified, float]
"""A question, what was found, and the seconds that it took, compilation included."""


def options_of_flags() -> dict[str, Any]:
    """Return the options of `certify_run` that the flags give.

    Raises:
      FlagError: for scales that are no numbers.
    """
    return {
        "clients": _CLIENTS.value,
        "scales": _scales(_SCALES.value),
        "delta": _DELTA.value,
        "local_epochs": _EPOCHS.value,
        "draws": _DRAWS.value,
    }


def certify_run(
    workdir: pathlib.Path, federation: Any, state: Any, title: str, say: Any, **options: Any
) -> list[Answer]:
    """Return the certificates of a run, written to its directory; ``summary.json`` comes last.

    Args:
      workdir: of the run.
      federation, state: of it.
      title: of the figure.
      say, options: of `answer`.
    """
    answers = answer(federation, state, say, **options)
    directory = (workdir / PLACE).parent
    directory.mkdir(exist_ok=True)
    write_rows(workdir / PLACE, answers)
    drawn = draw_certificates(title, read_certificates(workdir))
    save_figure(drawn, directory / "certificates.png")
    found = {asked.title: summary_of(found, seconds) for asked, found, seconds in answers}
    files.write_json(directory / SUMMARY, {"options": options, "certificates": found})
    return answers


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


def summary_of(found: Certified, seconds: float) -> dict[str, Any]:
    """Return a certificate's numbers over clients: means of those with examples, and pooled.

    The test error is None where no client has test examples.
    """
    some, tested = found.clients.n > 0, found.test_examples > 0
    return {
        "clients": int(some.sum()),
        "examples": float(found.clients.n[some].mean()),
        "bound_mean": float(found.clients.bound[some].mean()),
        "bound_pooled": float(found.pooled.bound),
        "kl_mean": float(found.clients.kl[some].mean()),
        "empirical_mean": float(found.clients.empirical[some].mean()),
        "test_mean": float(found.test[tested].mean()) if tested.any() else None,
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


def _scales(texts: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, texts))
    except ValueError as error:
        raise FlagError(f"--scales={','.join(texts)}: {error}; give numbers") from error
