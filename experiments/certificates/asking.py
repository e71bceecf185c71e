"""What is asked of a run, by which flags, and what is written of the answers."""

import csv
import io
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.output import write_figure
from experiments.report.certificates import PLACE, Row, draw_certificates, read_certificates
from pflalign_jax.certificates import CertificateError, Certified, certify
from pflalign_jax.cli.command import FlagError
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
"""The file beside it: options, the numbers of every certificate over clients, what was refused."""


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
    Asked("new", "pac_bayes", "laplace", "all"),
    Asked("new", "pac_bayes", "bound", "all"),
    Asked("new", "holdout", "adapted", "bound"),
    Asked("train", "pac_bayes", "received", "bound"),
    Asked("train", "pac_bayes", "bound", "bound"),
    Asked("train", "holdout", "adapted", "bound"),
)
"""What is asked of every run; those that are not valid for it are refused by `certify`."""


class Summary(NamedTuple):
    """What a run's `SUMMARY` says.

    Attributes:
      certificates: title to numbers as of `summary_of`.
      refused: title to why it is not valid.
    """

    certificates: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, str]

    def missing(self, questions: Sequence[Asked]) -> list[Asked]:
        """Return the questions that have been neither answered nor refused."""
        asked = {*self.certificates, *self.refused}
        return [question for question in questions if question.title not in asked]


NOTHING = Summary({}, {})
"""Before anything was asked."""

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


def questions_about(clients: Sequence[str]) -> list[Asked]:
    """Return those of `QUESTIONS` that are about clients.

    Args:
      clients: ``"new"``, ``"train"`` or both.

    Raises:
      FlagError: for other words, or none.
    """
    if not clients or not set(clients) <= {"new", "train"}:
        raise FlagError(f"--clients={','.join(clients)}: choose from new, train")
    return [question for question in QUESTIONS if question.clients in clients]


def certify_run(
    workdir: pathlib.Path,
    federation: Any,
    state: Any,
    title: str,
    say: Any,
    before: Summary = NOTHING,
    **options: Any,
) -> list[Answer]:
    """Return the certificates of a run, written to its directory; ``summary.json`` comes last.

    Args:
      workdir: of the run.
      federation, state: of it.
      title: of the figure.
      say: takes a line.
      before: what its directory has already, asked for with the same options: it stays, and is not
        asked again.
      options: ``clients`` of `questions_about`, and others of `answer`.

    Raises:
      CertificateError: if no certificate is valid.
    """
    others = {name: value for name, value in options.items() if name != "clients"}
    questions = before.missing(questions_about(options["clients"]))
    answers, refused = answer(federation, state, say, questions, **others)
    found = {asked.title: summary_of(found, seconds) for asked, found, seconds in answers}
    certificates = {**before.certificates, **found}
    if not certificates:
        raise next(iter(refused.values()))
    directory = (workdir / PLACE).parent
    directory.mkdir(exist_ok=True)
    kept = [row for row in read_certificates(workdir) if title_of_row(row) in before.certificates]
    write_rows(workdir / PLACE, answers, kept)
    drawn = draw_certificates(title, read_certificates(workdir))
    write_figure(directory / "certificates.png", drawn)
    told = {**before.refused, **{name: str(error) for name, error in refused.items()}}
    summary = {"options": options, "certificates": certificates, "refused": told}
    files.write_json(directory / SUMMARY, summary)
    return answers


def answer(
    federation: Any, state: Any, say: Any, questions: Sequence[Asked], **options: Any
) -> tuple[list[Answer], dict[str, CertificateError]]:
    """Return the certificates that are valid for a run, and by title why others are not.

    Args:
      federation, state: of the run.
      say: is told of those that are not.
      questions: what is asked.
      options: of `certify`.
    """
    answers: list[Answer] = []
    refused: dict[str, CertificateError] = {}
    for asked in questions:
        start = time.perf_counter()
        try:
            found = certify(federation, state, **asked._asdict(), **options)
        except CertificateError as error:
            refused[asked.title] = error
            say(f"not certified ({asked.title}): {error}")
            continue
        answers.append((asked, found, time.perf_counter() - start))
    return answers, refused


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


def title_of_row(row: Row) -> str:
    """Return the title of a row's certificate."""
    return Asked(*(row[name] for name in Asked._fields)).title


def write_rows(path: pathlib.Path, answers: Sequence[Answer], kept: Sequence[Row] = ()) -> None:
    """Write a row for every client of every certificate as csv.

    Args:
      path: of the file.
      answers: the certificates.
      kept: rows of `read_certificates` to stand before them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in kept:
        counts = {name: int(row[name]) for name in ("n", "test_examples")}
        whole = {**row, **counts, "client": cell(row["client"])}
        writer.writerow([whole[name] for name in COLUMNS])
    for asked, found, _ in answers:
        c = found.clients
        columns = (found.names, c.n, c.bound, c.empirical, c.kl, found.scales, found.test)
        for name, *numbers in zip(*columns, found.test_examples, strict=True):
            writer.writerow([*asked, cell(str(name)), *numbers])
    # Whole, since what it has from before is not asked again.
    files.write_text(path, text.getvalue())


def _scales(texts: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, texts))
    except ValueError as error:
        raise FlagError(f"--scales={','.join(texts)}: {error}; give numbers") from error
