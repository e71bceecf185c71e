"""What a comparison's results look like: terminal, tables, words, pictures."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from experiments.compare import columns, leaderboard, pictures, verdict
from experiments.compare import entries as results
from experiments.compare.paired import Difference
from pflalign_jax.cli.command import FlagError
from pflalign_jax.runs.config import default_config
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.headline import ACCURACY, Headline


def entry(method, *of_seeds, **fields):
    """Return an entry with clients' scores for each seed."""
    clients = {seed: {str(k): float(v) for k, v in enumerate(values)}
               for seed, values in enumerate(of_seeds)}  # fmt: skip
    means = [float(np.mean(values)) for values in of_seeds]
    scores = {} if not of_seeds else {
        name: means for name in ("global/mean", "personal/received/mean", "personal/adapted/mean",
                                 "personal/adapted/worst_decile")
    }  # fmt: skip
    found = results.Entry(
        method, ACCURACY, 0.1, False, {0.03: 88.0, 0.1: 90.0, 0.3: None}, "", len(of_seeds), 0, 0,
        [], scores, means, clients, 0.0123, 600800, 600800, "0" * 64, 90.0, {}, [],
    )  # fmt: skip
    return found._replace(**fields)


BASE = 96.7 + np.tile([-3.0, 3.0], 10)


@pytest.fixture(scope="module")
def entries():
    """Seven methods, one with a long name, one nearly as good as the best, one that is not."""
    noise = np.random.default_rng(0).normal(0, 2, (3, 20))
    return [
        entry("pflalign", *(BASE + noise - noise.mean()), own="beta 0.9; 0.5, 0.9, 0.99"),
        entry("ditto", *[BASE + 0.1] * 3, at_edge=True),
        entry("fedavg", *[BASE - 4] * 3),
        entry("local", *[BASE - 5] * 3),
        entry("my_module:mixed_with_mine", *[BASE - 14.25] * 3),
        entry("fedavgm", *(BASE + noise[::-1] - 1.5)),
        entry("fedprox", *[BASE - 4] * 3),
    ]


def printed(entries, width=80, names=()):
    console = Console(file=io.StringIO(), width=width)
    for table in leaderboard.tables(entries, width, names):
        console.print(table)
    return console.file.getvalue().splitlines()


def test_a_leaderboard_reads_at_80_columns(entries):
    short = [e for e in entries if len(e.method) < 20]
    lines = printed(short)
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert re.split(r"\s{2,}", lines[1].strip()) == [
        "method", "step size", "adapted", "worst decile", "to the best"
    ]  # fmt: skip
    rows = {line.split()[0]: line.rstrip() for line in lines[3:]}
    assert len(rows) == len(lines[3:]) == len(short)  # a line each
    assert re.search(r" 0\.1† +96\.8 ± 0\.0 +96\.8 ± 0\.0$", rows["ditto"])
    assert rows["pflalign"].endswith(") ≈") and rows["fedavg"].endswith(" -4.1 (-4.1 to -4.1)")


def test_columns_that_need_more_room_begin_a_table_of_their_own(entries):
    lines = printed(entries, 80, columns.NAMES)
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert "my_module:mixed_with_mine " in "".join(lines)
    heads = [line for line in lines if line.startswith("method")]
    assert len(heads) > 2 and len(lines) == len(heads) * (3 + len(entries))
    shown = {head for line in heads for head in re.split(r"\s{2,}", line.strip())[1:]}
    wanted = {column.short for name, column in columns.columns_of(entries).items()}
    assert shown == wanted - {"method"}
    # On a wide terminal they are one table, and what says nothing here has no column.
    (wide,) = [line for line in printed(entries, 400, columns.NAMES) if line.startswith("method")]
    assert "adapted with" not in wide
    # Only a column that is wider than a line is broken, and nothing of it is lost.
    narrow = "".join(printed(entries, 40, ["own"]))
    assert "…" not in narrow and "0.99" in narrow
    (few,) = leaderboard.tables(entries, 80, ["seconds"])
    assert [column.header for column in few.columns] == ["method", "s per round"]


def test_every_column_has_a_name(entries):
    adapted = [entries[0]._replace(adapted_with=[0.1]), *entries[1:]]
    assert ["method", *columns.NAMES] == list(columns.columns_of(adapted))
    assert set(columns.SHORT) <= set(columns.NAMES)
    assert columns.chosen(None) == [] and columns.chosen(["all"]) == list(columns.NAMES)
    assert columns.chosen(["seconds", "own", "seconds"]) == ["seconds", "own"]
    with pytest.raises(FlagError, match=r"--columns=glob is unknown; did you mean 'global'"):
        columns.chosen(["own", "glob"])


def test_what_cannot_be_told_from_the_best_is_marked_everywhere(entries):
    titles, rows = columns.cells(entries)
    to_best = {row[0]: row[titles.index("to the best (95 % interval)")] for row in rows}
    assert to_best["ditto"] == ""
    assert re.fullmatch(r"-0\.1 \(-\d\.\d to \+\d\.\d\) ≈", to_best["pflalign"])
    assert to_best["fedavg"] == "-4.1 (-4.1 to -4.1)"
    names, numbers = columns.numbers(entries)
    clear = {row[0]: row[names.index("to_best/clear")] for row in numbers}
    assert (clear["ditto"], clear["pflalign"], clear["fedavg"]) == ("", False, True)
    low = {row[0]: row[names.index("over_local/low")] for row in numbers}
    assert low["ditto"] == pytest.approx(5.1) and low["local"] == ""
    assert all(len(row) == len(names) for row in numbers)


def test_the_verdict_says_what_the_numbers_say(entries):
    said = verdict.verdict(verdict.standings_of(entries), ACCURACY)
    assert said.startswith("`ditto` is first of 7 with 96.8 ± 0.0. `pflalign` cannot be told from")
    assert "`pflalign` is 2nd with 96.7 ± " in said and ", 0.1 behind the first, 4.0 ahead" in said
    assert re.search(r"4\.0 ahead of `fedavg` \(\+\d\.\d to \+\d\.\d; \d+ clients won, \d", said)
    assert "`my_module:mixed_with_mine` is 7th with 82.5 ± 0.0, 14.3 behind the first" in said
    said = verdict.verdict(verdict.standings_of(entries[2:4]), ACCURACY)
    assert said == "`fedavg` is first of 2 with 92.7 ± 0.0. All others can be told from it."
    same = [entry("pflalign", *[BASE] * 3), entry("local", *[BASE] * 3)]
    said = verdict.verdict(verdict.standings_of(same), ACCURACY)
    assert said == (
        "`pflalign` is first of 2 with 96.7 ± 0.0. `local` cannot be told from it. It is not to be "
        "told from `local` (+0.0, +0.0 to +0.0; 0 clients won, 0 lost)."
    )


def test_the_verdict_counts_one_client_as_one(entries):
    first, *others = verdict.standings_of(entries)
    one = {"fedavg": Difference(1.0, 0.1, 2.0, 1, 2)}
    ours = first._replace(method="pflalign", over=one)
    said = verdict.verdict([ours, *others], ACCURACY)
    assert "(+0.1 to +2.0; 1 client won, 2 lost)" in said


@pytest.mark.parametrize("name", ["leaderboard.csv", "leaderboard.png"])
def test_a_file_that_cannot_be_written_is_named(entries, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(WorkdirError, match=rf"{name} cannot be written: .*directory"):
        leaderboard.write(tmp_path, entries, "the command", default_config())


def test_a_verdict_without_scores():
    lost = entry("pflalign")
    assert "all diverged" in verdict.verdict(verdict.standings_of([lost]), ACCURACY)
    alone = verdict.verdict(verdict.standings_of([entry("local", BASE)]), ACCURACY)
    assert alone == "`local` has 96.7; nothing was compared with it."
    both = verdict.verdict(verdict.standings_of([lost, entry("local", BASE)]), ACCURACY)
    assert both == "`local` is first of 2 with 96.7. `pflalign` diverged with all seeds."
    assert columns.cells([lost, entry("local", BASE)])[1][1][0] == "pflalign"


def test_the_search_is_a_picture():
    headline = Headline("rmse", higher_is_better=False, percent=False)
    found = [
        pictures.Search("a", {0.1: 3.0, 1.0: 2.0, 10.0: 2.5}, 1.0),
        pictures.Search("b", {0.1: 2.0, 1.0: 2.4, 10.0: None}, 0.1),
        pictures.Search("lost", {0.1: None, 1.0: 500.0}, 1.0),
        *[pictures.Search(f"{i}", {0.1: 2.2}, 0.1) for i in range(4)],
    ]
    figure = pictures.draw_searches(found, headline)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["a", "b†", "lost†", "0", "1", "2", "3"]
    crosses = [sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "x")
               for axes in shown]  # fmt: skip
    assert crosses[:3] == [0, 1, 2]  # diverged, or far below what the others reach
    assert [len(axes.patches) for axes in shown[:3]] == [0, 1, 1]  # grey beyond the edge
    worst, best = shown[0].get_ylim()
    assert worst > best and 2.0 > best and worst < 500  # better is up
