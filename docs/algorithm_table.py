"""Write the table of docs/algorithms.md from the code, between the two comments that mark it.

python -m docs.algorithm_table

Times are those of docs/performance.md.
"""

import functools
import inspect
import pathlib
import re

import jax
import numpy as np

from experiments.benchmark.any_algorithm import fitting_model, named_algorithm, with_adapters
from pflalign_jax import algorithms, datasets, federated, models

DOCS = pathlib.Path(__file__).parent
PAGE, TIMES = DOCS / "algorithms.md", DOCS / "performance.md"
BEGIN = "<!-- from the code: python -m docs.algorithm_table -->\n\n"
END = "\n<!-- end of what is from the code -->"

READ = ("name", "idea", "own hyperparameters", "time", "reference")
"""Columns of what is read: from modules, signatures, docstrings and the page on performance."""

TOLD = (
    *("up", "down", "kept", "server, per client", "cross-silo"),
    *("kept of the absent", "a new client starts from"),
)
"""Columns of what an algorithm's functions tell; it takes a minute for all of them."""

COLUMNS = (
    *("name", "idea", "own hyperparameters", "up", "down", "kept", "server, per client", "time"),
    *("cross-silo", "kept of the absent", "a new client starts from", "reference"),
)

SHARED_ARGUMENTS = (
    *("model", "learning_rate", "loss", "local_optimizer", "local_epochs", "batch_size"),
    *("num_clients", "num_classes", "diagnostics"),
)
"""Of algorithms: what all take, or the runner supplies."""

NUM_CLIENTS = 10


def read_cells(name: str) -> dict[str, str]:
    """Return the cells of an algorithm in the columns `READ`."""
    factory = getattr(algorithms, name)
    idea = (inspect.getdoc(inspect.getmodule(factory)) or "").split("\n")[0]
    given = inspect.signature(factory).parameters
    own = [n for n in given if n not in SHARED_ARGUMENTS]
    fields = ", ".join(f"`{n}`{default(given[n])}" for n in own)
    paper = reference(inspect.getdoc(factory) or "")
    return dict(zip(READ, (f"`{name}`", idea, fields, round_times()[name], paper), strict=True))


def told_cells(name: str) -> dict[str, str]:
    """Return the cells of an algorithm in the columns `TOLD`; bytes as multiples of the model's."""
    federation = reference_federation(name, NUM_CLIENTS)
    x = federation.dataset.x[:1]
    whole = federated.num_bytes(jax.eval_shape(federation.model.init, jax.random.key(0), x))
    found = federated.traits(federation)
    server = bytes_per_client(name, federation)
    sizes = [f"{size / whole:.2g}" for size in (found.up, found.down, found.kept, server)]
    silo = "yes" if found.cross_silo else ""
    return dict(zip(TOLD, (*sizes, silo, found.absent, found.newcomer), strict=True))


def bytes_per_client(name: str, federation: federated.Federation) -> int:
    """Return the bytes that a server keeps more when there is one client more."""
    if "num_clients" not in inspect.signature(getattr(algorithms, name)).parameters:
        return 0
    more = reference_federation(name, NUM_CLIENTS + 1)
    return federated.num_bytes(more.shapes.server) - federated.num_bytes(federation.shapes.server)


@functools.cache
def reference_case(num_clients: int) -> tuple[datasets.FederatedDataset, tuple[models.Model, ...]]:
    """Return clients with images of 28x28, for shapes alone, and models.

    The first one that fits is taken: the CNN, its adapters, or a ResNet, which is normalised.
    """
    images = np.random.default_rng(0).integers(0, 256, (110, 28, 28, 1), dtype=np.uint8)
    examples = datasets.Examples("noise", images, np.arange(110, dtype=np.int32) % 10, 10)
    data = datasets.partition_examples(examples, num_clients=num_clients, partition="iid")
    cnn = models.cnn(10)
    return data, (cnn, with_adapters(cnn, data), models.resnet(10))


def reference_federation(name: str, num_clients: int) -> federated.Federation:
    """Return an algorithm with the model that fits it."""
    data, candidates = reference_case(num_clients)
    model = fitting_model(name, candidates, data)
    return federated.federate(named_algorithm(name, model, data), model, data)


@functools.cache
def round_times() -> dict[str, str]:
    """Return by name what a round takes over FedAvg's, as the page on performance has measured.

    Methods for adapters are over FedAvg with adapters.
    """
    text = TIMES.read_text(encoding="utf-8")
    _, _, table = text.partition("| algorithm | CNN, ms per step | round over FedAvg's |")
    rows = re.findall(r"^\| `(\w+)`[^|]*\| [^|]+ \| ([\d.]+) ", table, flags=re.M)
    # FedAvg has a second row, with adapters; the first one is the model's.
    return {name: f"{float(ratio):.2g}" for name, ratio in reversed(rows)}


def default(parameter: inspect.Parameter) -> str:
    """Return an argument's default where it is a value that says something."""
    plain = isinstance(parameter.default, int | float | str)
    return f" {parameter.default}" if plain else ""


def reference(docstring: str) -> str:
    """Return a link to the paper that a docstring names, or its authors."""
    _, _, text = docstring.partition("References:\n")
    authors = re.match(r"\s*(.*?), (?:\"|arXiv)", text)
    paper = re.search(r"arXiv:(\d{4}\.\d{5})", text)
    if not authors:
        return ""
    if not paper:
        return authors[1]
    return f"[{authors[1]}, arXiv:{paper[1]}](https://arxiv.org/abs/{paper[1]})"


def as_markdown(rows: list[dict[str, str]]) -> str:
    """Return a table, a line for each row."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(row[column] for column in COLUMNS)} |" for row in rows]
    return "\n".join(lines) + "\n"


def committed() -> str:
    """Return the table that the page has."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return rest.partition(END)[0]


def committed_cells() -> list[dict[str, str]]:
    """Return the cells of the table that the page has, by column."""
    titles, _, *rows = [line[2:-2].split(" | ") for line in committed().splitlines()]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def generated() -> str:
    """Return the table as it must be."""
    return as_markdown([read_cells(name) | told_cells(name) for name in algorithms.NAMES])


def main() -> None:
    """Write the table into the page."""
    table = generated()  # before the page is read: it takes long enough to change the page
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE} lacks the lines {BEGIN.strip()!r} and {END.strip()!r}"
    PAGE.write_text(before + begin + table + end + after, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
