"""The report of runs whose numbers are known: what its tables say, what a browser shows."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from reported_runs import EVIL, FEDAVG, LOCAL, NAMES, OURS, made, run_with_a_best_round

from experiments.compare.entries import RIVALS
from experiments.report import figures, methods
from experiments.report.read import read
from experiments.report.write import write_report
from pflalign_jax.runs import files


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
