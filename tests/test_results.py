"""What the README says of who wins is what `compare` says of the tables in docs/results.md."""

import math
import pathlib
import re

from experiments.compare.paired import Difference
from experiments.compare.verdict import OURS, Standing, verdict
from pflalign_jax.runs.headline import ACCURACY

ROOT = pathlib.Path(__file__).parents[1]
SHOWN = {
    "Digits, Dir(0.1), 20 clients": "Digits",
    "Fashion-MNIST, Dir(0.1), 20 clients, a quarter of the data": "Fashion-MNIST",
    "NIST digits by writer, 200 writers": "NIST digits",
}
"""Section of the page to its name in the README."""


def tables():
    """Return section to the rows of its first table, column to text."""
    found = {}
    for section in re.split(r"^## ", (ROOT / "docs" / "results.md").read_text(), flags=re.M)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        texts = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
        whole = [row for row in texts if len(row) == len(texts[0])]
        found[section.splitlines()[0]] = [
            dict(zip(whole[0], row, strict=True)) for row in whole[1:]
        ]
    return found


def standings(rows):
    """Return the standings of a table's methods, without intervals: it has none."""
    unknown = math.nan, math.nan
    best = float(rows[0]["adapted"].split()[0])
    found = []
    for row in rows:
        over = {}
        for rival in ("local", "fedavg"):
            if text := row[f"over {rival} (won/lost)"]:
                mean, won, lost = re.fullmatch(r"([+-][\d.]+) \((\d+)/(\d+)\)", text).groups()
                over[rival] = Difference(float(mean), *unknown, int(won), int(lost))
        to_best = Difference(float(row["adapted"].split()[0]) - best, *unknown)
        method = row["method"].split()[0].strip("`")
        found.append(Standing(method, row["adapted"], None if row is rows[0] else to_best, over))
    return found


def test_the_readme_says_who_wins_as_the_tables_do():
    readme = " ".join((ROOT / "README.md").read_text().split())
    found = {name: standings(tables()[section]) for section, name in SHOWN.items()}
    for name, of in found.items():
        assert f"* {name}: {verdict(of, ACCURACY)}" in readme
    wins = sum(of[0].method == OURS for of in found.values())
    assert f"**pFLAlign is first in {wins or 'none'} of them**" in readme
