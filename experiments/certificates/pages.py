"""The certificates of methods as a table for readers and as one for programs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.certificates.cells import Cell
from experiments.compare.entries import moments
from experiments.output import markdown, write_csv
from pflalign_jax.runs import files

Found = Mapping[str, Sequence[Cell]]
"""Method to its certificates, one `Cell` for each seed."""


def write(root: pathlib.Path, found: Found, config: ConfigDict, command: str) -> str:
    """Write ``certificates.md`` and ``certificates.csv``; return the former.

    Args:
      root: directory.
      found: the certificates.
      config: of the runs.
      command: that makes them again.
    """
    write_csv(root / "certificates.csv", rows(found))
    text = page(found, config, command)
    files.write_text(root / "certificates.md", text)
    return text


def titles_of(found: Found) -> list[str]:
    """Return the titles of all certificates, in the order in which they were asked for."""
    cells = [cell for of_seeds in found.values() for cell in of_seeds]
    return list(dict.fromkeys(title for cell in cells for title in cell))


def rows(found: Found) -> list[list[Any]]:
    """Return the titles of columns, and a row for every method, seed and certificate."""
    listed: list[list[Any]] = []
    columns: list[str] = []
    for method, cells in found.items():
        for seed, cell in enumerate(cells):
            for title, numbers in cell.items():
                columns = list(numbers)
                values = ["" if value is None else value for value in numbers.values()]
                listed.append([method, seed, title, *values])
    return [["method", "seed", "certificate", *columns], *listed]


def page(found: Found, config: ConfigDict, command: str) -> str:
    """Return a page in Markdown: the certificates, and what they cost."""
    titles = titles_of(found)
    seeds = max(map(len, found.values()))
    lines = [
        f"# Certificates: {config.dataset.name}, {config.rounds} rounds, {config.model.name}",
        "",
        f"    {command}",
        "",
        "Mean of the clients' bounds / pooled bound (mean test error of what is certified), "
        f"seeds of training: {seeds}, with the same clients and data; ± is the standard deviation "
        "over them. Step sizes are those of the config.",
        "",
        *_table(found, titles, ("bound_mean", "bound_pooled", "test_mean"), _bounds),
        "",
        "Mean KL in nats (PAC-Bayes), examples of a client's bound sample, and seconds for 100 "
        "clients, compilation included:",
        "",
        *_table(found, titles, ("kl_mean", "examples", "seconds_per_100_clients"), _cost),
        "",
    ]
    return "\n".join(lines)


def _table(found: Found, titles: Sequence[str], names: Sequence[str], text: Any) -> list[str]:
    """Return a table with a row for each method and a column for each certificate."""
    listed = []
    for method, cells in found.items():
        trained = [cell for cell in cells if cell]
        name = method
        if len(trained) < len(cells):
            name += f" ({len(trained)} of {len(cells)} seeds, others diverged)"
        row = [text(*(_values(trained, title, each) for each in names)) for title in titles]
        listed.append([name, *row])
    return markdown(["", *titles], listed)


def _values(cells: Sequence[Cell], title: str, name: str) -> list[float]:
    """Return a number of a certificate, of every seed that has it."""
    found = (cell[title][name] for cell in cells if title in cell)
    return [value for value in found if value is not None]


def _bounds(bounds: list[float], pooled: list[float], test: list[float]) -> str:
    if not bounds:
        return ""
    return f"{_spread(bounds)} / {_spread(pooled)} ({_spread(test)})"


def _cost(kl: list[float], examples: list[float], seconds: list[float]) -> str:
    if not kl:
        return ""
    return f"{np.mean(kl):.3g}; n = {np.mean(examples):.0f}; {np.mean(seconds):.0f} s"


def _spread(values: list[float]) -> str:
    """Return mean and standard deviation over seeds."""
    if not values:
        return "no test examples"
    mean, deviation = moments(values)
    return f"{mean:.3f}" + (f" ± {deviation:.3f}" if len(values) > 1 else "")
