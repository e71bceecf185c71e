"""The report of runs whose numbers are known: what its tables say, what a browser shows."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments.report import figures
from experiments.report.read import ReportError, read
from experiments.report.write import write_report
from pflalign_jax import tasks
from pflalign_jax.errors import UserError
from pflalign_jax.federated import ClientScores
from pflalign_jax.runs import RunError, files

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
        files.append_clients(path, done, NAMES, scores)
        name = "accuracy/test/personal/adapted"
        row = {f"{name}/mean": values.mean(), f"{name}/worst_decile": values.min(), "round": done,
               "accuracy/validation/personal/adapted/mean": validation, "loss/train/mean": 1 / done,
               "seconds": 2.0, "seconds_total": 2.0 * done, "bytes_up": 1_500_000,
               "bytes_down": 500_000}  # fmt: skip
        files.append_row(path, row)
        if method == "pflalign":
            seen = {"round": done, "P/q05": 0.1, "P/q50": 0.2, "P/q95": 0.4}
            histogram = {"gamma/histogram": [0.05] * 20} if done > 1 else {}
            files.append_diagnostics(path, [seen | histogram])
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


def rows_of(page, table=0):
    """Return the texts of a table's cells."""
    body = re.findall(r"<tbody>(.*?)</tbody>", page.read_text(), re.DOTALL)[table]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


def test_a_comparison_is_its_chosen_settings(comparison):
    notes = []
    series = read([comparison], notes)
    assert [s.name for s in series] == ["pflalign", "local", "fedavg"]
    assert all(len(s.runs) == 2 for s in series)  # not the one run with pflalign's 0.3
    assert series[0].scores == pytest.approx(dict(zip(NAMES, (90, 90, 90, 50), strict=True)))
    assert notes == [
        "fedavg-1-0 was left out: not finished.", "fedavg-9-0 was left out: diverged.",
    ]  # fmt: skip


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
    ours, local, fedavg = rows_of(page)
    assert ours == ["pflalign", "2", "0.1", "", "", "80.0 ± 2.8", "50.0 ± 2.8", "+5.0 (3 / 1)",
                    "+7.5 (2 / 1)", "1.5 / 0.5", "2"]  # fmt: skip
    assert local[5:9] == ["75.0 ± 2.8", "60.0 ± 2.8", "", "+2.5 (2 / 2)"]
    assert fedavg[7:9] == ["-2.5 (2 / 2)", ""]
    clients = rows_of(page, 1)
    assert clients[0] == ["&lt;b&gt;ob", "5", "90.0", "70.0", "80.0"]
    text = page.read_text()
    for part in (
        "experiments.compare --config=a.py",
        "partition p1",
        "&quot;jax&quot;: &quot;0.10",
    ):
        assert part in text
    assert "toys" in text and "fedavg-9-0 was left out: diverged" in text


def test_every_figure_is_there_for_the_page_and_for_a_paper(page):
    text, folder = page.read_text(), page.parent
    names = ("learning_curves", "training_loss", "accuracy_against_bytes", "fairness", "labels",
             "accuracy_against_seconds", "clients_sorted", "clients_violin", "gain_over_local",
             "gain_over_fedavg", "alignment")  # fmt: skip
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
heads[5].querySelector("button").click();
const best = first().textContent;
heads[5].querySelector("button").click();
const worst = first().textContent;
const dot = document.querySelector("#figure-gain_over_local [data-tip]");
dot.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
const found = {
  errors: window.broken ?? [], cut, best, worst, tip: document.getElementById("tip").textContent,
  figures: [...document.querySelectorAll("figure svg")]
    .filter(svg => svg.getBoundingClientRect().height > 100).length,
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
    assert seen["figures"] == 11 and seen["texts"] > 100
    assert (seen["best"], seen["worst"]) == ("pflalign", "fedavg")
    assert seen["tip"].startswith("client ") and seen["tip"].endswith(" points")
    assert seen["wide"] <= 0
    light = scheme == "light"
    assert (seen["ground"] == "rgb(255, 255, 255)") == light
    assert (int(re.search(r"\d+", seen["ink"])[0]) < 128) == light  # text is read on its ground


def test_runs_of_one_method_are_told_apart_and_seeds_are_not(tmp_path):
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
    assert notes == ["Runs have different partitions: clients of different ones are not compared."]
    page = write_report(paths, tmp_path / "out")
    assert [row[7] for row in rows_of(page)] == ["", "+25.0 (4 / 0)", ""]


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
