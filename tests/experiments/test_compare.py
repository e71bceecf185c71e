import csv
import io
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from experiments import ablation
from experiments.compare import columns, comparison, leaderboard, trials
from experiments.compare import entries as results
from pflalign_jax.cli.console import ComparisonProgress, comparison_progress
from pflalign_jax.cli.flags import command_of
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.config import ConfigError, resolve
from pflalign_jax.runs.files import WorkdirError


def fake(scores):
    """Return a run function with given scores, and the list of step sizes it was called with."""
    called = []

    def run(rate):
        called.append(rate)
        return trials.Trial("m", rate, None, 0, pathlib.Path(), scores(rate))

    return run, called


def test_search_takes_the_best_inside_its_grid():
    run, called = fake(lambda rate: -abs(np.log(rate / 0.1)))
    best, searched = comparison.search(run, [0.3, 0.03, 0.1], 3)
    assert best.learning_rate == 0.1 and called == [0.03, 0.1, 0.3]
    assert [t.learning_rate for t in searched] == [0.03, 0.1, 0.3]


def test_search_extends_a_grid_whose_best_is_at_its_edge():
    run, called = fake(lambda rate: -abs(np.log(rate / 3.0)))
    best, _ = comparison.search(run, [0.01, 0.1], 5)
    assert called == [0.01, 0.1, 1.0, 10.0] and best.learning_rate == 1.0
    run, called = fake(lambda rate: -rate)
    best, _ = comparison.search(run, [0.1, 0.2], 2)
    assert called == [0.1, 0.2, 0.05, 0.025] and best.learning_rate == 0.025
    run, called = fake(lambda rate: rate)
    assert comparison.search(run, [1.0], 3)[0].learning_rate == 1.0 and called == [1.0]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A comparison of three methods with two seeds, and what it said."""
    root, said = tmp_path_factory.mktemp("compare"), []
    methods = ["local", "fedavg", "without_p"]
    entries = comparison.compare(config, methods, 2, root, ComparisonProgress(said.append))
    leaderboard.write(root, entries, "the command", config)
    return root, entries, said


def test_every_method_is_searched_then_repeated(finished):
    root, entries, said = finished
    assert [e.method for e in entries] == ["local", "fedavg", "without_p"]
    assert [len(e.searched) for e in entries] == [2, 1, 1]
    assert all(e.seeds == 2 and sorted(e.clients) == [0, 1] for e in entries)
    assert all(len(clients) == 4 for e in entries for clients in e.clients.values())
    assert len({e.partition_hash for e in entries}) == 1
    names = sorted(p.name for p in (root / "trials").iterdir())
    assert len(names) == len(said) == 3 + 2 + 2
    assert "without_p-0.1-1" in names
    trial = json.loads((root / "trials" / "without_p-0.1-1" / "config.json").read_text())
    assert trial["algorithm"]["precondition"] is False and trial["seed"] == 1
    assert trial["algorithm"]["learning_rate"] == 0.1


def test_a_shorter_search_chooses_what_all_rounds_are_run_with(config, tmp_path):
    shorter, said = config.copy_and_resolve_references(), []
    shorter.compare.search_rounds = 1
    totals = []
    progress = ComparisonProgress(said.append, lambda *new: totals.append(new))
    (entry,) = comparison.compare(shorter, ["local"], 2, tmp_path, progress)
    assert totals[0] == (1 + 1 + 2 * 2, 0) and totals[-1] == (6, 6)
    assert (np.diff(totals, axis=0)[:, 1] == 1).sum() == 6  # told round by round
    assert sorted(p.name for p in (tmp_path / "search").iterdir()) == ["local-0.1-0", "local-0.2-0"]
    runs = sorted((tmp_path / "trials").iterdir())
    assert [p.name for p in runs] == [f"local-{entry.learning_rate:g}-{seed}" for seed in (0, 1)]
    for place, rounds in (("search", 1), ("trials", 2)):
        for path in (tmp_path / place).iterdir():
            assert json.loads((path / "summary.json").read_text())["last"]["round"] == rounds
    assert entry.seeds == 2 and said[0].endswith("until round 1, seed 0")
    leaderboard.write(tmp_path, [entry], "the command", shorter)
    assert "adapted/mean of round 1 with seed 0" in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_search_is_not_longer_than_the_runs(config, tmp_path, rounds):
    wrong = config.copy_and_resolve_references()
    wrong.compare.search_rounds = rounds
    with pytest.raises(ConfigError, match=rf"search_rounds={rounds} is not allowed.* 1\.\.2 "):
        comparison.compare(wrong, ["local"], 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_rounds_of_a_grid_that_grows_and_of_trials_done_before_are_counted(config, finished):
    """And of a trial that diverges."""
    grown, totals = config.copy_and_resolve_references(), []
    grown.compare.grid, grown.compare.extensions = (0.2, 1e30), 1
    progress = ComparisonProgress(changed=lambda *new: totals.append(new))
    comparison.compare(grown, ["local"], 1, finished[0], progress)
    assert totals[0] == (4, 0) and totals[-1] == (6, 6)
    assert [0, 2] in np.diff(totals, axis=0).tolist()


def test_a_terminal_sees_a_bar_over_all_rounds():
    for terminal, expected in ((True, "30/40 rounds"), (False, "30/40 rounds  ditto")):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=90)
        with comparison_progress(console) as progress:
            progress.expect(40)
            progress.add(30)
            progress.say("ditto")
        seen = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).split())
        assert " ".join(expected.split()) in seen and "ditto" in seen


def test_a_comparison_goes_on_where_it_was(config, finished):
    root, entries, _ = finished
    half_done = root / "trials" / "local-0.1-0"
    (half_done / "summary.json").unlink()  # as if killed
    others = {p: p.stat().st_mtime_ns for p in root.rglob("summary.json")}
    again = comparison.compare(config, ["local", "fedavg", "without_p"], 2, root)
    assert (half_done / "summary.json").exists()
    assert {p: p.stat().st_mtime_ns for p in others} == others
    for before, after in zip(entries, again, strict=True):
        assert before._replace(seconds=0.0) == after._replace(seconds=0.0)


def test_an_own_hyperparameter_is_searched_after_the_step_size(config, tmp_path, monkeypatch):
    tried = []

    def run(setting, seeds, context, built):
        method, _, rate, field, own, _ = setting
        tried.extend((rate, field, own, seed) for seed in seeds)
        score = -abs(rate - 0.2) - abs((0.01 if own is None else own) - 0.1)
        return [trials.Trial(method, rate, own, seed, tmp_path, score) for seed in seeds]

    monkeypatch.setattr(comparison, "run_trials", run)
    monkeypatch.setattr(results, "entry", lambda *arguments: arguments)
    tuned, said = config.copy_and_resolve_references(), []
    tuned.compare.tuned.fedprox = ("mu", (0.01, 0.1, 1.0))
    progress = ComparisonProgress(said.append)
    ((_, best, searched, own, repeats, fields),) = comparison.compare(
        tuned, ["fedprox"], 2, tmp_path, progress
    )
    assert [t[0] for t in tried[:2]] == [0.1, 0.2] and len(searched) == 2
    assert tried[2:] == [(0.2, "mu", v, s) for v, s in ((0.1, 0), (1.0, 0), (0.1, 1))]
    assert best.own == 0.1 and [t.seed for t in repeats] == [0, 1]
    assert own == ("mu", 0.01, [0.1, 1.0]) and "mu 0.1" in said[2]
    assert fields == {"algorithm.name": "fedprox", "algorithm.learning_rate": 0.2,
                      "algorithm.mu": 0.1}  # fmt: skip
    with tuned.unlocked():  # a variant has said what it wants
        tuned.compare.variants.fixed = {"name": "fedprox", "mu": 0.5}
        tuned.compare.variants.open = {"name": "fedprox", "mu": 0.5}
        tuned.compare.tuned.open = ("mu", (0.5, 2.0))
    assert comparison.own_grid(tuned, "fixed", comparison.settings(tuned, "fixed"))[0] is None
    assert comparison.own_grid(tuned, "open", comparison.settings(tuned, "open")) == (
        "mu",
        0.5,
        [2.0],
    )


def test_the_ablation_has_every_variant_once():
    config = ablation.get_config()
    resolved = {
        name: json.dumps(resolve(comparison.settings(config, name)).algorithm.to_dict())
        for name in config.compare.algorithms
    }
    assert len(resolved) == 7 * 3 + 1 + 2 and len(set(resolved.values())) == len(resolved)
    assert json.loads(resolved["sign-50"])["beta"] == 0.5
    assert all(
        comparison.own_grid(config, n, comparison.settings(config, n))[0] is None for n in resolved
    )


def test_other_settings_in_the_same_place_are_refused(config, finished):
    changed = config.copy_and_resolve_references()
    changed.rounds = 3
    with pytest.raises(WorkdirError, match=r"differs in rounds\. Choose another --workdir"):
        comparison.compare(changed, ["local"], 1, finished[0])


def test_other_data_in_the_same_place_are_refused(config, finished, monkeypatch):
    path = finished[0]
    build_dataset = comparison.build_dataset

    def changed(config):
        dataset = build_dataset(config)
        x = dataset.x.copy()
        x[7] += 1  # one example
        return dataset._replace(x=x)

    monkeypatch.setattr(comparison, "build_dataset", changed)
    with pytest.raises(WorkdirError, match=r"of other data than digits is now: features_crc32_all"):
        comparison.compare(config, ["fedavg"], 1, path)


def test_a_method_that_does_not_fit_is_named_before_anything_is_run(config, tmp_path):
    with pytest.raises(ConfigError, match=r"^fedbn: .*part like '\*Norm\*'"):
        comparison.compare(config, ["local", "fedbn"], 1, tmp_path)
    assert not list(tmp_path.iterdir())
    left_out, config = {}, config.copy_and_resolve_references()
    with pytest.raises(ConfigError, match="no method fits"):
        comparison.compare(config, ["fedbn"], 1, tmp_path, leave_out=left_out)
    assert "*Norm*" in left_out["fedbn"]


def test_without_validation_examples_nothing_is_trained(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.dataset.validation_fraction = 0.0
    with pytest.raises(ConfigError, match="no validation split to choose step sizes by"):
        comparison.compare(config, ["local"], 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_methods_are_named(config):
    with pytest.raises(ConfigError, match="'ditta' is unknown; did you mean 'ditto'"):
        comparison.settings(config, "ditta")


def test_the_leaderboard_says_what_it_is(finished):
    root, entries, _ = finished
    text = (root / "leaderboard.md").read_text()
    parts = ("the command", "2 seeds", "chosen by accuracy/validation/personal/adapted/mean")
    for part in (
        *parts,
        entries[0].partition_hash[:16],
        "over local (interval; won/lost)",
        "| fedavg |",
    ):
        assert part in text
    with (root / "leaderboard.csv").open(newline="") as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    assert set(found) == {"local", "fedavg", "without_p"}
    values = entries[0].scores["personal/adapted/weighted"]
    assert float(found["local"]["personal/adapted/weighted/mean"]) == np.mean(values)
    assert float(found["local"]["personal/adapted/weighted/std"]) == np.std(values, ddof=1)
    assert found["local"]["global/mean/mean"] == found["local"]["over_local/mean"] == ""
    assert float(found["without_p"]["over_local/mean"]) == results.gain(*entries[2::-2]).mean
    assert found["fedavg"]["seeds"] == "2" and found["fedavg"]["diverged"] == "0"
    assert "not compared" not in text
    assert (root / "leaderboard.png").stat().st_size > 5000
    assert (root / "searches.png").stat().st_size > 5000
    titles, rows = columns.cells(entries)
    assert all(len(row) == len(titles) for row in rows)
    adapted = titles.index("personal/adapted")
    means = [float(row[adapted].split(" ±")[0]) for row in rows]
    assert means == sorted(means, reverse=True)


def test_the_best_round_is_the_one_that_did_best_on_validation(finished):
    root, entries, _ = finished
    for seed, score in enumerate(entries[0].best_round):
        trial = root / "trials" / f"local-{entries[0].learning_rate:g}-{seed}"
        lines = map(json.loads, (trial / "metrics.jsonl").read_text().splitlines())
        rows = {row["accuracy/validation/personal/adapted/mean"]: row for row in reversed([*lines])}
        assert score == 100 * rows[max(rows)]["accuracy/test/personal/adapted/mean"]


def test_the_command_is_the_one_given_but_for_its_place():
    given = ["--config=experiments/a.py", "--workdir", "runs/x", "--config.compare.grid=(1, 2)"]
    assert command_of("compare", given) == (
        "python -m experiments.compare --config=experiments/a.py '--config.compare.grid=(1, 2)'"
    )
    assert "runs" not in command_of("compare", ["--seeds=2", "--workdir=runs/x"])


def test_an_own_hyperparameter_may_be_none_at_first(config, tmp_path):
    plan = config.copy_and_resolve_references()
    plan.rounds, plan.compare.grid, plan.compare.tuned.ditto = 1, (0.1,), ("personal_tx", (3.0,))
    (entry,) = comparison.compare(plan, ["ditto"], 1, tmp_path)
    assert entry.own in ("personal_tx none; 3", "personal_tx 3; 3")
    assert {p.name for p in (tmp_path / "trials").iterdir()} == {
        "ditto-0.1-0", "ditto-0.1-personal_tx-3-0"
    }  # fmt: skip


def test_the_step_size_of_the_last_adaptation_is_chosen_too(config, tmp_path):
    plan = config.copy_and_resolve_references()
    plan.rounds, plan.compare.grids.fedavg, plan.compare.adapt = 1, (0.001, 1.0), True
    (entry,) = comparison.compare(plan, ["fedavg"], 1, tmp_path)
    trained = {rate: files.read_summary(tmp_path / "trials" / f"fedavg-{rate:g}-0")["last"]
               for rate in (0.001, 1.0)}  # fmt: skip
    chosen = trained[entry.learning_rate]["adapt_learning_rate"]
    assert entry.adapted_with == [chosen] and chosen in (0.001, 1.0)
    titles, (row,) = columns.cells([entry])
    assert row[titles.index("adapted with")] == f"{chosen:g}"
    # A method with a step size of its own for it has that one searched.
    plans, *_ = comparison.plans_of(plan, ["fedavg", "perfedavg"])
    assert plans["fedavg"].adapt_learning_rate == (0.001, 1.0)
    assert plans["perfedavg"].adapt_learning_rate is None


def test_seeds_that_diverged_and_messages_that_were_lost_are_told(config, finished, tmp_path):
    paths = [
        shutil.copytree(finished[0] / "trials" / f"fedavg-0.1-{s}", tmp_path / f"{s}")
        for s in (0, 1)
    ]
    rows = round_files.read_rows(paths[0])
    rows[0]["clients/nonfinite"] = 3
    (paths[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (paths[1] / "summary.json").write_text('{"diverged": true}')
    seeds = [trials.Trial("fedavg", 0.1, None, s, paths[s], [0.5, -np.inf][s]) for s in (0, 1)]
    found = results.entry("fedavg", seeds[0], seeds[:1], None, seeds, {})
    assert (found.seeds, found.diverged, found.nonfinite, found.validation) == (1, 1, 3, 50.0)
    assert list(found.clients) == [0] and found.runs == paths[:1]
    leaderboard.write(tmp_path, [found], "the command", config)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| 1 of 2, others diverged; 3 messages not finite |" in text
    assert "local was not compared." in text
    (table,) = leaderboard.tables([found], 130)
    assert "seeds" in [column.header for column in table.columns]
