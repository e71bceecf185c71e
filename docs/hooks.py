"""What the site's build adds: pages from the repository's root, and names on the API pages."""

import functools
import importlib
import inspect
import pathlib
import re
import types

import jax
import numpy as np
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from experiments.benchmark.any_algorithm import fitting_model, named_algorithm, with_adapters
from pflalign_jax import algorithms, datasets, federated, models

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SHARED_ARGUMENTS = (
    *("model", "learning_rate", "loss", "local_optimizer", "local_epochs", "batch_size"),
    *("num_clients", "num_classes", "diagnostics"),
)
"""Of algorithms: what all take, or the runner supplies."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, changelog and contributing as pages."""
    for source, page in PAGES.items():
        text = with_links((ROOT / source).read_text(encoding="utf-8"), config.repo_url)
        files.append(File.generated(config, page, content=text))
    return files


def with_links(text: str, repo_url: str) -> str:
    """Return markdown of the root with its links made the site's, or the repository's."""

    def link(match):
        target = match[2]
        if target.startswith(("http:", "https:", "#")):
            return match[0]
        if target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif target in PAGES:
            target = PAGES[target]
        else:
            target = f"{repo_url.rstrip('/')}/blob/main/{target}"
        return f"{match[1]}({target})"

    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", link, text)


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Fill in what is made from the code, and point links to pages of the root to the site's.

    ``::: all MODULE`` becomes an entry for every name that the module exports, and
    ``::: table of algorithms`` a row for every algorithm.
    """
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{source}", rf"](\1{page}", markdown)
    markdown = re.sub(
        r"^::: table of algorithms$", lambda m: algorithm_table(), markdown, flags=re.M
    )
    return re.sub(r"^::: all (\S+)$", lambda m: entries(m[1]), markdown, flags=re.M)


def entries(module_name: str) -> str:
    """Return an entry for every public name of a module, but for modules.

    A function that has its module's name is found by where it is defined: read as source, the
    module hides it.
    """
    module = importlib.import_module(module_name)
    text = []
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            continue
        defined = getattr(value, "__qualname__", None) == name
        where = value.__module__ if defined else module_name
        text.append(f"::: {where}.{name}\n    options:\n      show_root_heading: true\n")
    return "\n".join(text)


def algorithm_table() -> str:
    """Return a table of all algorithms: modules, signatures, docstrings and what functions tell."""
    columns = ["name", "idea", "own hyperparameters", "up", "down", "kept", "time", "cross-silo"]
    columns += ["kept of the absent", "a new client starts from", "reference"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    times = round_times()
    for name in algorithms.NAMES:
        factory = getattr(algorithms, name)
        idea = (inspect.getdoc(inspect.getmodule(factory)) or "").split("\n")[0]
        given = inspect.signature(factory).parameters
        own = [n for n in given if n not in SHARED_ARGUMENTS]
        fields = ", ".join(f"`{n}`{default(given[n])}" for n in own)
        up, down, kept, *clients = costs(name)
        cells = [f"`{name}`", idea, fields, up, down, kept, times[name], *clients]
        cells.append(reference(inspect.getdoc(factory) or ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@functools.cache
def reference_data() -> datasets.FederatedDataset:
    """Return ten clients with images of 28x28, for shapes alone."""
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 1), dtype=np.uint8)
    examples = datasets.Examples("noise", images, np.arange(100, dtype=np.int32) % 10, 10)
    return datasets.partition_examples(examples, num_clients=10, partition="iid")


def reference_federation(name: str) -> federated.Federation:
    """Return an algorithm with the CNN, with its adapters, or with a ResNet that is normalised."""
    data, cnn = reference_data(), models.cnn(10)
    candidates = (cnn, with_adapters(cnn, data), models.resnet(10))
    model = fitting_model(name, candidates, data)
    return federated.federate(named_algorithm(name, model, data), model, data)


def costs(name: str) -> list[str]:
    """Return the cells of an algorithm's traits; bytes as multiples of those of the model."""
    federation = reference_federation(name)
    x = federation.dataset.x[:1]
    whole = federated.num_bytes(jax.eval_shape(federation.model.init, jax.random.key(0), x))
    found = federated.traits(federation)
    sizes = [f"{size / whole:.2g}" for size in (found.up, found.down, found.kept)]
    return [*sizes, "yes" if found.cross_silo else "", found.absent, found.newcomer]


def round_times() -> dict[str, str]:
    """Return by name what a round takes over FedAvg's, as the page on performance has measured.

    Methods for adapters are over FedAvg with adapters.
    """
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
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
