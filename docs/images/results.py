"""Draw the README's picture, results.svg, from the tables of docs/results.md.

python docs/images/results.py

"""

import hashlib
import pathlib
import re
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
SOURCE, PICTURE = HERE.parent / "results.md", HERE / "results.svg"

SECTIONS = {
    "Digits by writer": "writers of 20 digits",
    "Features of requests": "intents, 15 of 150",
    "synthetic": "synthetic(1, 1)",
}
"""What the title of a section begins with, to the title of its panel."""

COLUMN = "adapted"
"""Of the tables: test accuracy of every client's own model after its local steps."""

MARKED = {"pflalign": "#d55e00", "fedavg": "#0072b2", "local": "#0072b2"}
"""Methods with a colour: the paper's own, and the two that all others are compared with."""

WIDEST = 8.0
"""Points below the best up to which a panel goes; what is below is written at its edge."""


class Score(NamedTuple):
    """Mean and standard deviation over seeds, in percent."""

    mean: float
    std: float


def read_tables() -> dict[str, dict[str, Score]]:
    """Return ``{panel: {method: score}}`` of the first table of every section."""
    found = {}
    sections = re.split(r"^## ", SOURCE.read_text(encoding="utf-8"), flags=re.M)
    for beginning, panel in SECTIONS.items():
        text = next(section for section in sections if section.startswith(beginning))
        table = re.search(rf"^\|[^\n]*\| {COLUMN} \|[^\n]*\n(\|[^\n]*\n)+", text, re.M)
        assert table is not None, f"{SOURCE}: {beginning} has no table with a column {COLUMN!r}"
        header, _, *rows = [line[1:-1].split("|") for line in table[0].splitlines()]
        column = [cell.strip() for cell in header].index(COLUMN)
        scores = {}
        for row in rows:
            mean, std = re.findall(r"[\d.]+", row[column])[:2]
            scores[re.sub(r"\W", "", row[0])] = Score(float(mean), float(std))
        found[panel] = scores
    return found


def hash_of(tables: dict[str, dict[str, Score]]) -> str:
    """Return a sha256 of the numbers, which the picture has in it."""
    return hashlib.sha256(
        repr(sorted((p, sorted(t.items())) for p, t in tables.items())).encode()
    ).hexdigest()


def draw(tables: dict[str, dict[str, Score]]) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "results", "font.size": 9})
    # Best on average at the top; methods of all three tables.
    methods = sorted(
        set.intersection(*map(set, tables.values())),
        key=lambda name: sum(table[name].mean for table in tables.values()),
    )
    fig, axes = plt.subplots(1, 3, figsize=(9, 0.21 * len(methods) + 1), sharey=True)
    for axis, (panel, table) in zip(axes, tables.items(), strict=True):
        best = max(table[name].mean for name in methods)
        for y, name in enumerate(methods):
            mean, std = table[name]
            colour = MARKED.get(name, "#666666")
            if mean < best - WIDEST:
                text = f"◂ {mean:.1f}"
                axis.text(best - WIDEST, y, text, va="center", fontsize=8, color=colour)
                continue
            axis.errorbar(mean, y, xerr=std, fmt="o", ms=4, lw=1.2, color=colour)
        axis.set(title=panel, xlim=(best - WIDEST - 0.2, best + 1.2))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods)
    for label in axes[0].get_yticklabels():
        label.set_color(MARKED.get(label.get_text(), "black"))
    axes[1].set_xlabel(
        "test accuracy of clients' own models, %: mean and standard deviation, 3 seeds"
    )
    fig.tight_layout()
    about = {"Date": None, "Description": f"numbers of docs/results.md, sha256 {hash_of(tables)}"}
    fig.savefig(PICTURE, metadata=about)


if __name__ == "__main__":
    draw(read_tables())
    print(PICTURE)
