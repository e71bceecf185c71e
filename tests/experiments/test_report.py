"""The report of runs whose numbers are known: what its tables say, what a browser shows."""

import doctest
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments.compare.entries import RIVALS
from experiments.report import curve_figures, figures, html, methods, reported, style, tables
from experiments.report.read import ReportError, read
from experiments.report.write import write_report
from pflalign_jax import tasks
from pflalign_jax.errors import UserError
from pflalign_jax.federated import ClientScores
from pflalign_jax.runs import RunError, files, round_files
from pflalign_jax.runs.intervals import wilson

NAMES = np.array(["anna", "<b>ob", "cleo", "dan"])
VERSIONS = {"jax": "0.10"}
METRICS = tasks.classification().metrics


def made(path, method, seed, accuracy, rate=0.1, rounds=4, validation=0.5, finished=True, **more):
    """Write what a run writes; its clients' accuracies grow to those given."""
    files.create(path)
    algorithm = {"name": method, "learning_rate": rate, **more.pop("algorithm", {})}
    config = {"seed": seed, "rounds": rounds, "algorithm": algorithm, "dataset": {"name": "toys"}}
    files.write_json(path / "config.json", config)
    counts = [[3, 1], [0, 4], [2, 2], [5, 0]]
    data = {"name": "toys", "partition_hash": "p1", "client_names": NAMES.tolist(),
            "label_counts": counts} | more  # fmt: skip
    files.write_json(path / "data.json", data)
    for done in range(1, rounds + 1):
        values = np.array(accuracy) * done / rounds
        named = {"accuracy": values, "loss": 1 - values}
        score = ClientScores(np.array([5, 5, 5, 5]), named, METRICS)
        scores = {"test/personal/adapted": score, "test/personal/received": score}
        round_files.append_clients(path, done, np.array(data["client_names"]), scores)
        name = "accuracy/test/personal/adapted"
        row = {f"{name}/mean": values.mean(), f"{name}/worst_decile": values.min(), "round": done,
               "accuracy/validation/personal/adapted/mean": validation, "loss/train/mean": 1 / done,
               "seconds": 2.0, "seconds_total": 2.0 * done, "bytes_up": 1_500_000,
               "bytes_down": 500_000}  # fmt: skip
        round_files.append_row(path, row)
        if method == "pflalign":
            seen = {"round": done, "P/q05": 0.1, "P/q50": 0.2, "P/q95": 0.4}
            histogram = {"gamma/histogram": [0.05] * 20} if done > 1 else {}
            round_files.append_diagnostics(path, [seen | histogram])
    if finished:
        summary = {"dataset": {"clients": 4}, "versions": VERSIONS, "last": row}
        files.write_summary(path, summary)
    return path


LOCAL, FEDAVG = (0.6, 0.7, 0.8, 0.9), (0.5, 0.8, 0.9, 0.7)
OURS = (0.9, 0.9, 0.9, 0.5)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    for seed, shift in ((0, -0.02), (1, 0.02)):
        for method, accuracy in (("local", LOCAL), ("fedavg", FEDAVG), ("pflalign", OURS)):
            path = root / "trials" / f"{method}-0.1-{seed}"
            made(path, method, seed, np.array(accuracy) + shift)
    made(root / "trials" / "pflalign-0.3-0", "pflalign", 0, OURS, rate=0.3, validation=0.9)
    made(root / "trials" / "fedavg-1-0", "fedavg", 0, LOCAL, rate=1.0, finished=False)
    wild = made(root / "trials" / "fedavg-9-0", "fedavg", 0, LOCAL, rate=9.0)
    files.write_diverged(wild)
    files.write_command(root, "python -m experiments.compare --config=a.py")
    return root


@pytest.fixture(scope="module")
def page(comparison):
    return write_report([comparison], comparison / "report")


def titles_of(page, table=0):
    """Return the titles of a table's columns."""
    head = re.findall(r"<thead>(.*?)</thead>", page.read_text(), re.DOTALL)[table]
    return re.findall(r"<button>(.*?)</button>", head.replace("<wbr>", ""))


def rows_of(page, table=0):
    """Return the texts of a table's cells."""
    text = page.read_text().replace("<wbr>", "")
    body = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)[table]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


def test_a_comparison_is_its_chosen_settings(comparison):
    notes = []
    series = read([comparison], notes)
    assert [s.name for s in series] == ["pflalign", "local", "fedavg"]
    assert all(len(s.runs) == 2 for s in series)  # not the one run with pflalign's 0.3
    assert series[0].scores == pytest.approx(dict(zip(NAMES, (90, 90, 90, 50), strict=True)))
    assert notes == ["Left out: fedavg-1-0 (not finished), fedavg-9-0 (diverged)."]
    assert series[0].first.searched.rates == {0.1: 50.0, 0.3: 90.0}
    assert series[2].first.searched.rates == {0.1: 50.0, 9.0: None}


def test_a_variant_is_known_by_its_trial_and_not_by_its_folder(tmp_path):
    """Names with hyphens and numbers, a hyperparameter of its own; and one of an older version."""
    for seed in (0, 1):
        name = files.TrialName("full-90", 0.1, "lam", 0.1, seed)
        path = made(tmp_path / "trials" / name.folder(), "ditto", seed, LOCAL)
        files.write_trial(path, name)
        assert files.read_trial(path) == name
    made(tmp_path / "trials" / "older-0.1-0", "fedavg", 0, OURS)
    assert [(s.name, len(s.runs)) for s in read([tmp_path], [])] == [("fedavg", 1), ("full-90", 2)]


def test_the_tables_have_the_numbers(page):
    titles = titles_of(page)
    ours, local, fedavg = (dict(zip(titles, row, strict=True)) for row in rows_of(page))
    assert titles[:3] == ["method", "personal/adapted", "worst decile"]
    assert list(ours.values())[:3] == ["pflalign", "80.0 ± 2.8", "50.0 ± 2.8"]
    assert local["personal/adapted"] == "75.0 ± 2.8" and local["worst decile"] == "60.0 ± 2.8"
    over = {rival: next(t for t in titles if t.startswith(f"over {rival}")) for rival in RIVALS}
    assert "+5.0" in ours[over["local"]] and "3/1" in ours[over["local"]]
    assert "+7.5" in ours[over["fedavg"]] and "2/1" in ours[over["fedavg"]]
    assert "pflalign is first of 3 with 80.0 ± 2.8." in page.read_text()
    assert (local[over["local"]], fedavg[over["fedavg"]]) == ("", "")
    assert "-2.5" in fedavg[over["local"]]
    worst = rows_of(page, 1)
    # No counts of right answers: these scores are no shares of five examples.
    assert worst[0] == ["dan", "50.0", "5"] and len(worst) == 4
    clients = rows_of(page, 2)
    assert clients[0] == ["&lt;b&gt;ob", "5", "90.0", "70.0", "80.0"]
    text = page.read_text()
    for part in (
        "<span>experiments.compare</span> <span>--config=a.py</span>",
        "partition p1",
        "&quot;jax&quot;: &quot;0.10",
    ):
        assert part in text
    assert "toys" in text and "fedavg-9-0 (diverged)" in text


def test_the_table_of_a_comparison_has_all_columns_of_its_leaderboard(tmp_path, monkeypatch):
    """Also those of a search that was shorter, and of a hyperparameter of the method's own."""
    monkeypatch.setattr(figures, "figures", lambda series: {})  # to draw takes long
    for place, rate, own in (
        ("search", 0.1, None), ("search", 0.3, None), ("search", 0.3, 2.0), ("trials", 0.3, 2.0),
    ):  # fmt: skip
        name = files.TrialName("ditto", rate, "lam", own, 0)
        lam = {"algorithm": {"lam": 1.0 if own is None else own}}
        path = made(tmp_path / place / name.folder(), "ditto", 0, OURS, rate=rate, **lam)
        files.write_trial(path, name)
    made(tmp_path / "trials" / "local-0.1-0", "local", 0, LOCAL)
    page = write_report([tmp_path], tmp_path / "report")
    titles, ditto = titles_of(page), rows_of(page)[0]
    known, rows = methods.cells([methods.entry_of(each) for each in read([tmp_path], [])])
    said = {title for i, title in enumerate(known) if {row[i] for row in rows} - {"", "nan"}}
    assert said == set(titles) and {"validation", "at the best round"} < said
    assert "lam 2; 1, 2" in ditto and "0.1, 0.3" in " ".join(ditto)


def test_every_figure_is_there_for_the_page_and_for_a_paper(page):
    text, folder = page.read_text(), page.parent
    names = ("learning_curves", "training_loss", "accuracy_against_bytes", "fairness", "labels",
             "accuracy_against_seconds", "clients_sorted", "clients_violin", "gain_over_local",
             "gain_over_fedavg", "alignment", "searches")  # fmt: skip
    assert len(names) == text.count("<figure id=")
    for name in names:
        assert f'<figure id="figure-{name}">' in text
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<!--.*?-->', "", text)  # no network
    assert 'data-tip="client anna, pflalign: +30.0 points"' in text
    assert 'data-tip="client &lt;b&gt;ob, label 1: 4"' in text
    assert "accuracy/test/personal/adapted" in text


CHECK = """<script>
addEventListener("error", event => (window.broken ??= []).push(event.message));
</script>"""
LOOK = """<script>
const cut = [...document.querySelectorAll("figure svg")].flatMap(svg => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < whole.left - 1 || box.right > whole.right + 1
      || box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
  }).map(text => text.textContent);
});
const heads = document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells;
const first = () => document.querySelectorAll("table.sortable")[0].tBodies[0].rows[0].cells[0];
heads[1].querySelector("button").click();
const best = first().textContent;
heads[1].querySelector("button").click();
const worst = first().textContent;
const dot = document.querySelector("#figure-gain_over_local [data-tip]");
dot.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
const found = {
  errors: window.broken ?? [], cut, best, worst, tip: document.getElementById("tip").textContent,
  figures: [...document.querySelectorAll("figure svg")].filter(svg => {
    const box = svg.getBoundingClientRect();
    return box.height > 60 && box.left >= 0 && box.right <= document.documentElement.clientWidth;
  }).length,
  seen: [...heads].filter(head => head.getBoundingClientRect().right
    <= heads[0].closest(".scroll").getBoundingClientRect().right).map(head => head.textContent),
  texts: document.querySelectorAll("figure svg text").length,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  ink: getComputedStyle(document.querySelector("figure svg text")).fill,
  ground: getComputedStyle(document.body).backgroundColor,
};
const out = document.createElement("pre");
out.id = "found";
out.textContent = JSON.stringify(found);
document.body.append(out);
</script>"""

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(page, tmp_path, width, scheme):
    text = page.read_text()
    if scheme == "dark":
        text = text.replace("color-scheme: light dark", "color-scheme: dark")
    file = tmp_path / "checked.html"
    # A window is at least 500 pixels wide, so that a phone's page lies in a frame.
    file.write_text(text.replace("<h1>", f"{CHECK}<h1>", 1) + LOOK)
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="checked.html" width={width} height=900></iframe><script>'
        'addEventListener("load", () => { const found = document.createElement("pre");'
        'found.textContent = document.querySelector("iframe").contentDocument'
        '.getElementById("found").textContent; document.body.append(found); });</script>'
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom",
         "--virtual-time-budget=5000", frame.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["errors"] == [] and seen["cut"] == []
    assert seen["figures"] == 12 and seen["texts"] > 100
    assert (seen["best"], seen["worst"]) == ("pflalign", "fedavg")
    assert seen["tip"].startswith("client ") and seen["tip"].endswith(" points")
    assert seen["wide"] <= 0
    assert seen["seen"][:3] == ["method", "personal/adapted", "worst decile"]
    light = scheme == "light"
    assert (seen["ground"] == "rgb(255, 255, 255)") == light
    assert (int(re.search(r"\d+", seen["ink"])[0]) < 128) == light  # text is read on its ground


def run_with_a_best_round(path, **more):
    """Write a run of one seed whose second round was the best on validation."""
    made(path, "local", 0, (0.2, 0.8, 1.0, 1.0), **more)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row, validation in zip(rows, (0.5, 0.9, 0.6, 0.5), strict=True):
        row["accuracy/validation/personal/adapted/mean"] = validation
        row |= {f"accuracy/test/global/{of}": 0.3 for of in ("mean", "worst_decile", "min")}
        row["loss/train/mean"] += row["round"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_page_of_a_run_says_what_the_terminal_said(tmp_path, monkeypatch):
    run = run_with_a_best_round(tmp_path / "run")
    monkeypatch.setattr(figures, "figures", lambda series: {})  # to draw takes long
    page = write_report([run])
    text = re.sub("<[^>]*>", "", page.read_text().replace("<wbr>", ""))
    assert "4 clients, after 4 rounds, 1 seed. " in text and "standard deviation" not in text
    assert "After the last round: 75.0 %. After round 2, the best on validation: 37.5 %." in text
    titles = titles_of(page)
    assert titles[:4] == [
        "split / model / stage", "mean, last (4)", "mean, best (2)", "worst decile, last (4)",
    ]  # fmt: skip
    scores = {row[0]: row[1:3] for row in rows_of(page)}
    assert scores == {
        "test/global": ["30.0", "30.0"], "test/personal/adapted": ["75.0", "37.5"],
        "validation/personal/adapted": ["50.0", "90.0"],
    }  # fmt: skip
    assert titles_of(page, 1) == [
        "client", "accuracy (%)", "test examples", "right", "95 % interval (%)",
    ]  # fmt: skip
    assert rows_of(page, 1)[0] == ["anna", "20.0", "5", "1", "4 to 62"]
    assert (
        "Client anna got 1 of its 5 test examples right: one more or less is 20 points, and its "
        "true accuracy may be anywhere from 4 to 62 %" in text
    )


def test_without_validation_no_round_is_chosen(tmp_path, monkeypatch):
    made(tmp_path / "run", "local", 0, LOCAL, validation=None)
    monkeypatch.setattr(figures, "figures", lambda series: {})
    text = write_report([tmp_path / "run"]).read_text()
    assert "No round is chosen, as there are no validation scores." in text


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


@pytest.mark.parametrize("module", [html, reported, style, tables])
def test_the_examples_in_docstrings(module):
    failed, attempted = doctest.testmod(module)
    assert failed == 0 and attempted


def test_runs_of_one_method_are_told_apart_and_seeds_are_not(tmp_path, monkeypatch):
    paths = [
        made(tmp_path / "a", "ditto", 0, LOCAL, algorithm={"lam": 0.1}),
        made(tmp_path / "b", "ditto", 1, LOCAL, algorithm={"lam": 0.1}, finished=False),
        made(tmp_path / "c", "ditto", 0, OURS, algorithm={"lam": 1.0}, partition_hash="p2"),
        made(tmp_path / "d", "local", 0, (0.5, 0.5, 0.5, 0.5)),
    ]
    notes = []
    series = read(paths, notes)
    assert [(s.name, len(s.runs)) for s in series] == [
        ("ditto (lam=1.0)", 1), ("ditto (lam=0.1)", 2), ("local", 1),
    ]  # fmt: skip
    assert notes == [
        "b is not finished: it has come to round 4.",
        "Runs have different partitions: clients of different ones are not compared.",
    ]
    monkeypatch.setattr(figures, "figures", lambda series: {})  # to draw takes long
    page = write_report(paths, tmp_path / "out")
    at = next(i for i, title in enumerate(titles_of(page)) if title.startswith("over local"))
    first, second, third = (row[at] for row in rows_of(page))
    assert (first, third) == ("", "") and "+25.0" in second and "4/0" in second


@pytest.mark.slow  # pages of fewer methods: above
def test_many_methods_show_the_best_and_the_baselines(tmp_path):
    values = np.linspace(0.9, 0.3, 14)
    names = [*(f"m{i:02d}" for i in range(11)), "pflalign", "fedavg", "local"]
    for name, value in zip(names, values, strict=True):
        made(tmp_path / "trials" / f"{name}-0.1-0", name, 0, [value] * 4, rounds=1)
    series = read([tmp_path], [])
    shown = [each.name for each in figures.shown(series)]
    assert shown == [*(f"m{i:02d}" for i in range(7)), "pflalign", "fedavg", "local"]
    page = write_report([tmp_path], tmp_path / "report")
    assert len(rows_of(page)) == 14 and "The 10 of 14 methods shown" in page.read_text()


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


EVIL = "<script>alert(1)</script>"


def test_names_and_values_of_anybody_are_escaped(tmp_path, monkeypatch):
    """Of every field that somebody else can write, nothing becomes markup or the name of a file."""
    path = made(tmp_path / "run", EVIL, 0, OURS, client_names=[*NAMES[:3].tolist(), EVIL])
    files.write_command(path, EVIL)
    for name in ("config", "data", "summary"):
        file = path / f"{name}.json"
        content = json.loads(file.read_text()) | {EVIL: EVIL}
        for key in ("algorithm", "dataset", "versions"):
            if key in content:
                content[key] |= {EVIL: EVIL}
        content |= {"name": EVIL, "partition_hash": EVIL, "state": EVIL}
        if name == "data":
            content["task"] = {"headline": {"metric": EVIL, "higher_is_better": True}}
        file.write_text(json.dumps(content))
    for name in ("metrics.jsonl", "clients.csv"):
        text = (path / name).read_text().replace("dan", EVIL)
        (path / name).write_text(text.replace("accuracy", EVIL))
    drawn = figures.figures(read([path], []))
    assert all(re.fullmatch(r"[\w-]+", name) for name in drawn), drawn.keys()
    some = {name: drawn[name] for name in drawn if "bytes" in name or name == "clients_sorted"}
    monkeypatch.setattr(figures, "figures", lambda series: some)  # to save all takes long
    page = write_report([path], tmp_path / "out" / "report").read_text(encoding="utf-8")
    assert EVIL not in page and page.count("<script>") == 1
    assert "&lt;script&gt;" in page
    assert len(some) == 2 and page.count(" download>PNG") == 2
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}


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
