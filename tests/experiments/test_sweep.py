"""Sweeps over fields of the config: their grid, their parts, their runs, their pages."""

import csv
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from experiments.compare import entries
from experiments.sweep import cells, grid, pages
from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.cli.flags import with_fields
from pflalign_jax.runs import files
from pflalign_jax.runs.config import ConfigError, resolve
from pflalign_jax.runs.headline import ACCURACY, Headline
from pflalign_jax.runs.lock import locked

TWO = {"algorithm.beta": ["0.5", "0.9"], "algorithm.learning_rate": ["0.1", "1"]}


def test_the_grid_is_taken_out_of_the_arguments():
    found, rest = grid.take_grid(
        ["--config=a.py", "--sweep.model.hidden=(50,),(100, 50)", "-sweep.rounds", "5,10"]
        + ["--seeds=2", "--sweep.dataset.path='a,b',c"]
    )
    assert rest == ["--config=a.py", "--seeds=2"]
    assert found == {
        "model.hidden": ["(50,)", "(100, 50)"],
        "rounds": ["5", "10"],
        "dataset.path": ["'a,b'", "c"],
    }


@pytest.mark.parametrize(
    "words", [["--sweep.rounds="], ["--sweep.rounds=5,,6"], ["--sweep.rounds"]]
)
def test_an_empty_value_is_refused(words):
    with pytest.raises(FlagError, match=r"--sweep\.rounds=.* has an empty value"):
        grid.take_grid(words)


def test_values_are_read_as_after_config_flags(config):
    given = {"model.name": ["mlp"], "model.hidden": ["(5,)", "(6,7)"], "diagnostics": ["true"]}
    given |= {"dataset.alpha": ["0.1", "1"]}
    found = grid.combinations(config, given, search=False)
    places = [(each.config.model.hidden, each.config.dataset.alpha) for each in found]
    assert places == [((5,), 0.1), ((5,), 1), ((6, 7), 0.1), ((6, 7), 1)]
    assert all(each.config.diagnostics is True for each in found)
    assert config.model.hidden is None and config.diagnostics is False
    assert len({each.folder() for each in found}) == 4


@pytest.mark.parametrize(
    ("given", "search", "error", "message"),
    [
        ({}, False, FlagError, r"no field to vary; pass such as --sweep\."),
        ({"algorithm.betta": ["1"]}, False, FlagError, r"no field 'betta'.*\"beta\""),
        ({"rounds": ["2", "1.5"]}, False, ConfigError, r"^rounds=1\.5: config\.rounds=1\.5 .* int"),
        ({"compare.extensions": ["x"]}, True, FlagError, "extensions=x: invalid literal"),
        ({"algorithm": ["x"]}, False, FlagError, "is a section of fields"),
        ({"seed": ["1"]}, False, FlagError, "of --seeds"),
        ({"headline": ["loss"]}, False, FlagError, "compared by one score"),
        ({"compare.grid": ["0.1"]}, False, FlagError, "it is for --search"),
        ({"algorithm.learning_rate": ["1"]}, True, FlagError, "--search chooses step sizes"),
        ({"algorithm.name": ["pflalign", "fedavg"], "algorithm.beta": ["0.5"]}, False, ConfigError,
         r"^algorithm\.name=fedavg, algorithm\.beta=0\.5: .*does not go with algorithm 'fedavg'"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(config, given, search, error, message):
    with pytest.raises(error, match=message):
        grid.combinations(config, given, search)


def test_shards_are_the_whole(config):
    found = grid.combinations(config, {"rounds": list("12345")}, search=False)
    parts = [grid.shard_of(f"{i}/3").of(found) for i in (1, 2, 3)]
    assert sorted(map(str, itertools.chain(*parts))) == sorted(map(str, found))
    assert [len(part) for part in parts] == [2, 2, 1] and grid.shard_of(None).of(found) == found


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "-1/2"])
def test_a_shard_out_of_range_is_refused(text):
    with pytest.raises(FlagError, match=rf"--shard={text} is not possible; it must be i/n"):
        grid.shard_of(text)


def test_what_shares_programs_and_data_is_together(config):
    given = {"algorithm.beta": ["0.5", "0.9"], "dataset.alpha": ["0.1", "1"], "rounds": ["1", "2"]}
    order = cells.by_program(grid.combinations(config, given, search=False))
    places = [(e.values["dataset.alpha"], e.values["rounds"], e.values["algorithm.beta"])
              for e in order]  # fmt: skip
    assert places == list(itertools.product(("0.1", "1"), ("1", "2"), ("0.5", "0.9")))


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    """A sweep whose two parts were run one after the other, and what the first had found."""
    root, said = tmp_path_factory.mktemp("sweep"), []
    found = grid.combinations(config, TWO, search=False)
    sweep = cells.Sweep(config, 2, False, root)
    totals = []
    for i in (1, 2):
        progress = ComparisonProgress(said.append, lambda *new: totals.append(new))
        cells.run_cells(sweep, grid.shard_of(f"{i}/2").of(found), progress)
        if i == 1:
            assert [sweep.read(each) is None for each in found] == [False, True, False, True]
    assert totals[-1] == (8, 8)  # of the second part
    return sweep, found, said


def test_every_combination_is_run_with_its_fields(swept):
    sweep, found, said = swept
    assert said[0].startswith(
        "algorithm.beta=0.5, algorithm.learning_rate=0.1: pflalign, step size"
    )
    for each in found:
        result = sweep.read(each)
        assert len(result.validation) == len(result.test) == 2 and result.diverged == 0
        trials = sorted((sweep.path(each) / "trials").iterdir())
        assert [files.read_config(path)["seed"] for path in trials] == [0, 1]
        written = files.read_config(trials[0])["algorithm"]
        assert written["beta"] == float(each.values["algorithm.beta"])
        assert written["learning_rate"] == float(each.values["algorithm.learning_rate"])
        row = files.read_summary(trials[0])["last"]
        assert result.test[0] == pytest.approx(100 * row[ACCURACY.key("test")])
        # And its command makes the same run.
        again = with_fields(sweep.config, {name: repr(v) for name, v in result.fields.items()})
        kept = resolve(again).algorithm
        assert {name: kept[name] for name in ("beta", "learning_rate")} == {
            name: written[name] for name in ("beta", "learning_rate")
        }
        assert set(result.fields) == {"algorithm.beta", "algorithm.learning_rate"}


def test_what_is_done_is_not_run_again(swept, monkeypatch):
    sweep, found, _ = swept
    monkeypatch.setattr(cells, "run_counted", lambda *arguments: pytest.fail("it was run"))
    cells.run_cells(sweep, found)
    # Nor is it taken for something else.
    other = sweep._replace(seeds=3)
    with pytest.raises(files.WorkdirError, match="another config or other --seeds or --search"):
        cells.run_cells(other, found)


def test_a_result_that_was_lost_is_made_of_the_runs(swept):
    sweep, found, _ = swept
    kept = sweep.read(found[0])
    (sweep.path(found[0]) / "cell.json").unlink()
    cells.run_cells(sweep, found[:1])
    assert sweep.read(found[0]) == kept


def test_a_damaged_result_is_named(swept, tmp_path):
    sweep, found, _ = swept
    copy = sweep._replace(root=tmp_path)
    path = copy.path(found[0])
    path.mkdir(parents=True)
    kept = json.loads((sweep.path(found[0]) / "cell.json").read_text())
    for field, value in (("test", ["x"]), ("headline", {"metric": 3})):
        (path / "cell.json").write_text(json.dumps(kept | {field: value}))
        with pytest.raises(files.WorkdirError, match=rf"cell\.json cannot be read \({field}"):
            copy.read(found[0])


def test_a_combination_that_another_process_works_on_is_left_alone(config, tmp_path):
    found = grid.combinations(config, {"rounds": ["1"]}, search=False)
    sweep = cells.Sweep(config, 1, False, tmp_path)
    sweep.path(found[0]).mkdir(parents=True)
    with locked(sweep.path(found[0])):
        with pytest.raises(files.WorkdirError, match=r"cells/rounds-1 is in use by process \d+"):
            cells.run_cells(sweep, found)


def test_combinations_need_validation_examples(config, tmp_path):
    found = grid.combinations(config, {"dataset.validation_fraction": ["0.0"]}, search=False)
    with pytest.raises(ConfigError, match=r"^dataset\.valid.*: there is no validation split"):
        cells.run_cells(cells.Sweep(config, 1, False, tmp_path), found)


def test_with_search_every_combination_is_a_comparison_of_its_method(
    config, tmp_path, monkeypatch, swept
):
    compared = []
    run = sorted((swept[0].path(swept[1][0]) / "trials").iterdir())[0]

    def compare(plan, methods, seeds, root, progress, stop):
        compared.append((methods, plan.algorithm.beta, plan.compare.keep, seeds, root.name))
        found = entries.Entry(**dict.fromkeys(entries.Entry._fields))
        return [found._replace(headline=ACCURACY, learning_rate=3.0, at_edge=True, runs=[run],
                               scores={entries.RANKED_BY: [50.0]}, diverged=1, seconds=math.nan,
                               fields={"algorithm.learning_rate": 3.0})]  # fmt: skip

    monkeypatch.setattr(cells, "compare", compare)
    found = grid.combinations(config, {"algorithm.beta": ["0.5"]}, search=True)
    sweep = cells.Sweep(config, 2, True, tmp_path)
    cells.check_searches(sweep, found)
    cells.run_cells(sweep, found)
    assert compared == [(["pflalign"], 0.5, "none", 2, "algorithm.beta-0.5")]
    result = sweep.read(found[0])
    assert (result.learning_rate, result.at_edge, result.test) == (3.0, True, [50.0])
    assert result.diverged == 1 and math.isnan(result.seconds)
    assert result.fields == {"algorithm.beta": 0.5, "algorithm.learning_rate": 3.0}
    wrong = grid.combinations(config, {"compare.search_rounds": ["1", "9"]}, search=True)
    with pytest.raises(ConfigError, match=r"^compare\.search_rounds=9: .*search_rounds=9 is not"):
        cells.check_searches(sweep, wrong)


def results(given, headline=ACCURACY):
    """Return results of a grid: 80, 81, ... on validation, the third diverged."""
    found = []
    for i, texts in enumerate(itertools.product(*given.values())):
        scores = [] if i == 2 else [80.0 + i, 82.0 + i]
        of = grid.Combination(dict(zip(given, texts, strict=True)), None)
        seconds = math.nan if i == 2 else 0.1
        found.append(cells.Result(of, headline, 3.0, i == 1, scores, scores, 2 * (i == 2), seconds,
                                  {"rounds": 5}))  # fmt: skip
    return found


def test_the_best_is_that_on_validation_without_divergence():
    found = results({"rounds": list("1234")})
    assert [r.combination.values["rounds"] for r in pages.ranked(found)] == list("4213")
    found[3] = found[3]._replace(diverged=1)
    assert [r.combination.values["rounds"] for r in pages.ranked(found)] == list("2143")
    less = results({"rounds": list("1234")}, Headline("rmse", False, False))
    assert pages.ranked(less)[0] is less[0]
    with pytest.raises(ConfigError, match="scored by accuracy and rmse, which cannot be compared"):
        cells.same_headline([*found, *less])


def test_pages_show_every_combination(tmp_path):
    given = {"algorithm.beta": ["0.5", "0.9"], "model.hidden": ["(5,)", "(6, 7)"]}
    pages.write(tmp_path, results(given), given, "the command", "the run")
    with (tmp_path / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["model.hidden"] for row in rows] == ["(5,)", "(6, 7)"] * 2
    assert [row["best"] for row in rows] == ["False"] * 3 + ["True"]
    assert rows[0]["validation/mean"] == "81.0" and rows[2]["test/mean"] == ""
    text = (tmp_path / "sweep.md").read_text()
    assert "| 0.5 | (6, 7) | 3† | 82.0 ± 1.4 | 82.0 ± 1.4 | 0 |" in text
    assert "| 0.9 | (5,) | 3 |  |  | 2 |" in text and "| **0.9** | **(6, 7)** |" in text
    assert "Best on validation of 4: algorithm.beta=0.9, model.hidden=(6, 7), with 84.0" in text
    assert "    the command" in text and "    the run" in text
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_a_step_size_that_varies_is_shown_once():
    given = {"algorithm.learning_rate": ["1", "3"]}
    assert pages.heads(results(given)) == ["validation", "test"]
    assert pages.texts(results(given)[1], results(given)) == ["82.0 ± 1.4"] * 2


@pytest.mark.parametrize(("sizes", "panels"), [((4,), 1), ((2, 3), 1), ((3, 2, 2), 3)])
def test_a_line_a_heat_map_or_several(sizes, panels):
    names = ("rounds", "batch_size", "local_epochs")[: len(sizes)]
    given = {name: list(map(str, range(n))) for name, n in zip(names, sizes, strict=True)}
    # Of fields with one value nothing is to be seen.
    found = results({"seed": ["0"], **given})
    axes = pages.picture(found, {"seed": ["0"], **given}).axes
    assert len(axes) == panels + (len(sizes) > 1)  # a colour bar
    if len(sizes) > 1:
        texts = [text.get_text() for ax in axes[:panels] for text in ax.texts]
        assert len(texts) == math.prod(sizes) and texts[0] == "81.0" and texts[2] == "×"


def test_of_four_fields_there_is_no_picture(tmp_path):
    given = {name: ["1", "2"] for name in "abcd"}
    pages.write(tmp_path, results(given), given, "the command", "the run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.md"]


def test_runs_of_a_sweep_go_on_with_its_command(swept):
    sweep, found, _ = swept
    trial = next((sweep.path(found[0]) / "trials").iterdir())
    for path in (trial, sweep.path(found[0]), sweep.root):
        assert files.how_to_go_on(path) == f"the same command with --workdir={sweep.root} goes on"


@pytest.mark.slow
def test_parts_run_at_the_same_time_then_write_one_table(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--config=experiments/digits.py"]
    command += ["--sweep.algorithm.beta=0.5,0.9", "--sweep.dataset.alpha=0.1,1", "--search"]
    command += ["--config.rounds=1", "--config.model.name=logistic", "--config.model.hidden=None"]
    command += ["--config.compare.grid=0.1,1", "--config.compare.extensions=0", "--seeds=2"]
    command += [f"--workdir={tmp_path / 'sweep'}"]
    started = [subprocess.Popen([*command, f"--shard={i}/2"], stdout=subprocess.PIPE, text=True)
               for i in (1, 2)]  # fmt: skip
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "Best on validation of 4: " in "".join(said)
    with (tmp_path / "sweep" / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and np.isfinite([float(row["test/std"]) for row in rows]).all()
    assert "--shard" not in (tmp_path / "sweep" / "sweep.md").read_text()
