"""What README and docs/when.md say of who wins is what their tables say."""

import math
import pathlib
import re

from experiments.compare.paired import Difference
from experiments.compare.verdict import OURS, Standing, verdict
from pflalign_jax.runs.headline import ACCURACY

ROOT = pathlib.Path(__file__).parents[1]
SHOWN = {
    "Digits by writer, 200 writers of 20 examples": "Writers",
    "Features of requests, 30 clients of 15 of 150 intents": "Intents",
    "synthetic(1, 1), 30 clients": "synthetic(1, 1)",
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


def difference(text):
    """Return what a cell such as ``-0.3 (-1.6 to +1.1; 11/19)`` says; ≈: seeds disagree, or 0."""
    number = r"([+-][\d.]+)"
    pattern = rf"{number} \({number} to {number}(?:; (\d+)/(\d+))?\)( ≈)?"
    *numbers, won, lost, unclear = re.fullmatch(pattern, text).groups()
    # -0.0 is a little below 0.
    mean, low, high = (float(x) or math.copysign(1e-9, float(x)) for x in numbers)
    return Difference(mean, low, high, int(won or 0), int(lost or 0), not unclear)


def standings(rows):
    """Return the standings of a table's methods."""
    found = []
    for row in rows:
        over = {}
        for rival in ("local", "fedavg"):
            if text := row[f"over {rival} (interval; won/lost)"]:
                over[rival] = difference(text)
        text = row["to the best (95 % interval)"]
        to_best = difference(text) if text else None
        assert (to_best is None) == (row is rows[0])
        found.append(Standing(row["method"].strip("`"), row["adapted"], to_best, over))
    return found


def test_the_readme_says_who_wins_as_the_tables_do():
    readme = " ".join((ROOT / "README.md").read_text().split())
    found = {name: standings(tables()[section]) for section, name in SHOWN.items()}
    for name, of in found.items():
        assert f"* {name}: {verdict(of, ACCURACY)}" in readme
    wins = sum(of[0].method == OURS for of in found.values())
    assert f"**pFLAlign is first in {wins or 'none'} of them**" in readme


def test_the_map_says_what_its_cells_do():
    page = (ROOT / "docs" / "when.md").read_text()
    header = next(line for line in page.splitlines() if "| best rival |" in line)
    methods = [text.strip() for text in header.strip("|").split("|")][3:]
    # Some cells are in two tables: they count once.
    cells = dict.fromkeys(re.findall(r"^\| [\d.]+ \| [\d.]+ \|(.*)\|$", page, flags=re.M))
    gains = [[text.strip() for text in cell.split("|")][1:] for cell in cells]
    assert len(gains) == 50
    for method, of_method in zip(methods, zip(*gains, strict=True), strict=True):
        ahead, behind = (sum(gain.startswith(f"**{sign}") for gain in of_method) for sign in "+-")
        assert f"* `{method}` is ahead in {ahead} of 50 cells and behind in {behind};" in page
