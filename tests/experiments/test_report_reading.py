"""What a report reads of runs, its curves, names and intervals; and what it refuses."""

import json

import pytest
from reported_runs import EVIL, LOCAL, OURS, made, run_with_a_best_round

from experiments.report import curve_figures, figures, style, tables
from experiments.report.read import ReportError, read
from experiments.report.write import write_report
from pflalign_jax.errors import UserError
from pflalign_jax.runs import RunError, files
from pflalign_jax.runs.intervals import wilson


def test_a_variant_is_known_by_its_trial_and_not_by_its_folder(tmp_path):
    """Names with hyphens and numbers, a hyperparameter of its own; and one of an older version."""
    for seed in (0, 1):
        name = files.TrialName("full-90", 0.1, "lam", 0.1, seed)
        path = made(tmp_path / "trials" / name.folder(), "ditto", seed, LOCAL)
        files.write_trial(path, name)
        assert files.read_trial(path) == name
    made(tmp_path / "trials" / "older-0.1-0", "fedavg", 0, OURS)
    assert [(s.name, len(s.runs)) for s in read([tmp_path], [])] == [("fedavg", 1), ("full-90", 2)]


def lines_of(axes):
    """Return the lines of a figure's axes that have points: rounds, values and style."""
    return {
        (line.get_color(), line.get_linestyle()): line.get_xydata().tolist() for line in axes.lines
    }


def test_the_curves_of_a_run_are_of_all_models_and_splits(tmp_path):
    (series,) = read([run_with_a_best_round(tmp_path / "run")], [])
    figure = curve_figures.curves_of_one(series)
    (axes,) = figure.axes
    shared, own = style.INK, style.COLOURS[1]
    lines = lines_of(axes)
    assert lines[shared, "-"] == [[done, pytest.approx(30)] for done in (1, 2, 3, 4)]
    assert lines[own, ":"] == [
        [done, pytest.approx(v)] for done, v in enumerate((50, 90, 60, 50), 1)
    ]
    assert lines[own, "-"][-1] == [4, pytest.approx(75)]
    assert lines[own, "None"] == [[2, pytest.approx(37.5)]]  # the ring
    assert axes.get_xticks().tolist() == [1, 2, 3, 4] and axes.get_xlim()[0] > 0.8
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert names == {"global", "personal/adapted", "test", "validation"}


def test_costs_are_added_up_over_the_rounds_between_evaluations(tmp_path):
    path = made(tmp_path / "run", "local", 0, LOCAL, rounds=2)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row, done, seconds in zip(rows, (5, 8), (0.5, 2.0), strict=True):
        row |= {"round": done, "seconds": seconds, "seconds_total": 100.0}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (series,) = read([path], [])
    spent = curve_figures.spent_so_far(series.first, ("seconds",))
    assert spent.tolist() == [2.5, 8.5]  # 5 rounds of half a second, then 3 of two
    sent = curve_figures.spent_so_far(series.first, ("bytes_up", "bytes_down"))
    assert sent.tolist() == [10e6, 16e6]


def test_names_of_clients_and_classes_stand_where_numbers_would(tmp_path):
    path = made(tmp_path / "run", "local", 0, LOCAL, class_names=["ham", "spam, and much of it"])
    (series,) = read([path], [])
    below = figures.figures([series])["labels"][0].axes[1]
    names = [text.get_text() for text in below.get_xticklabels()]
    assert names == ["anna", "<b>ob", "cleo", "dan"]
    assert [text.get_text() for text in below.get_yticklabels()] == ["ham", "spam, and muc…"]
    (points,) = below.collections
    assert "client <b>ob, label spam, and much of it: 4" in points.tip_texts
    (path / "data.json").write_text((path / "data.json").read_text().replace('"ham",', ""))
    (series,) = read([path], [])
    assert series.first.class_names(2) == ["0", "1"]  # names of other labels


def test_the_interval_of_several_seeds_is_that_of_their_mean(tmp_path):
    paths = [
        made(tmp_path / str(seed), "local", seed, (score, 0.8, 0.8, 1.0), rounds=1)
        for seed, score in enumerate((0.2, 0.4))
    ]
    (series,) = read(paths, [])
    content = tables.worst_clients(series)
    assert content.titles == ["client", "accuracy (%)", "test examples", "95 % interval (%)"]
    low, high = wilson(0.3, 5)
    assert content.rows[0][3].text == f"{100 * low:.0f} to {100 * high:.0f}"
    assert tables.about_worst(series)[0].startswith("Client anna has 5 test examples: one more")


def test_numbers_are_in_numeric_order(tmp_path):
    path = made(
        tmp_path / "run", "local", 0, (0.4, 0.4, 0.6, 0.6), client_names=["10", "2", "0", "1"]
    )
    (series,) = read([path], [])
    assert [row[0].text for row in tables.of_clients([series]).rows] == ["0", "1", "2", "10"]
    assert [client for client, _ in tables.worst_first(series)] == ["2", "10", "0", "1"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"holds neither a run .* nor a comparison"):
        read([tmp_path], [])
    broken = made(tmp_path / "broken", "local", 0, LOCAL)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"round": 5, "lo')
    with pytest.raises(RunError, match=r"broken/metrics\.jsonl cannot be read .* mends its files"):
        read([broken], [])
    (tmp_path / "empty" / "trials").mkdir(parents=True)
    with pytest.raises(ReportError, match=r"no run is finished in .*empty"):
        read([tmp_path / "empty"], [])
    mistakes = {(): "no DIR given", (tmp_path / "none",): "none is not a directory"}
    for paths, message in mistakes.items():
        with pytest.raises(ReportError, match=message):
            write_report(list(paths))


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("summary", "dataset", {"clients": EVIL}, r"summary\.json cannot be shown .clients is '<s"),
        ("summary", "last", 3, r"summary\.json cannot be read .last is 3"),
        ("config", "algorithm", {"name": 5}, r"config\.json cannot be shown .name is 5"),
        ("data", "label_counts", [[1]], r"data\.json cannot be shown .label_counts has 1 rows"),
        ("data", "label_counts", [[1], [1, 2], [1], [1]], "has rows of several lengths"),
        ("data", "client_names", 5, r"data\.json cannot be read .client_names is 5"),
    ],
)
def test_what_cannot_be_shown_is_named(tmp_path, name, field, value, message):
    path = made(tmp_path / "run", "local", 0, LOCAL)
    file = path / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=message):
        read([path], [])


def test_rows_that_cannot_be_shown_are_named(tmp_path):
    path = made(tmp_path / "run", "local", 0, LOCAL)
    text = (path / "metrics.jsonl").read_text()
    for old, new, message in (
        ('"bytes_up": 1500000, ', "", "it has no field 'bytes_up'"),
        ('"seconds": 2.0', '"seconds": "2"', "seconds is '2' and not"),
        ('"loss/train/mean": 1.0', '"loss/train/mean": []', r"loss/train/mean is \[\] and not"),
    ):
        (path / "metrics.jsonl").write_text(text.replace(old, new))
        with pytest.raises(ReportError, match=rf"metrics\.jsonl cannot be shown .{message}"):
            read([path], [])
