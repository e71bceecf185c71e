"""A report as one html file that needs nothing else."""

import html
import io
import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.compare.leaderboard import RIVALS, paired
from experiments.report.figures import INK, tips
from experiments.report.read import Series
from pflalign_jax.runs import files
from pflalign_jax.runs.headline import Headline

HERE = pathlib.Path(__file__).parent

Cell = tuple[str, float | str]
"""What a cell shows, and what it is sorted by."""


def write(
    path: pathlib.Path,
    series: Sequence[Series],
    figures: Mapping[str, tuple[Figure, str]],
    commands: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write ``report.html`` and every figure as PNG and PDF to a directory.

    Args:
      path: the directory.
      series: what is reported.
      figures: from `experiments.report.figures.figures`.
      commands: that give the runs again.
      notes: what was left out, and why.
    """
    drawn = []
    for name, (figure, caption) in figures.items():
        drawn.append(_figure(name, _svg(name, figure), caption))
        FigureCanvasAgg(figure)
        figure.savefig(path / f"{name}.png", dpi=200)
        figure.savefig(path / f"{name}.pdf", metadata={"CreationDate": None})
    dataset = series[0].runs[0].data.get("name") or series[0].runs[0].config["dataset"]["name"]
    title = (
        f"{', '.join(each.name for each in series[:4])}{' ...' * (len(series) > 4)} on {dataset}"
    )
    style, script = ((HERE / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{style}</style>",
        f"<h1>{html.escape(title)}</h1>",
        *_about(series),
        *(
            [f"<div class=notes>{''.join(f'<p>{html.escape(n)}</p>' for n in notes)}</div>"]
            * bool(notes)
        ),
        f"<h2>Scores</h2>{_table(*_scores(series))}",
        f"<h2>Figures</h2><div class=figures>{''.join(drawn)}</div>",
        f"<h2>Clients</h2>{_details(_title_of_clients(series), _table(*_clients(series)))}",
        "<h2>To have it again</h2>",
        *(f"<pre>{html.escape(command)}</pre>" for command in commands),
        *_settings(series),
        f"<div id=tip role=status hidden></div><script>{script}</script>",
    ]
    files.write_text(path / "report.html", "\n".join(parts))


def _about(series: Sequence[Series]) -> list[str]:
    """Return the paragraph that says what was run and what its scores mean."""
    run = series[0].runs[0]
    data = (run.summary or {}).get("dataset", {})
    clients = f"{data['clients']} clients, " if "clients" in data else ""
    seeds = sorted({len(each.runs) for each in series})
    done = sorted({int(r.rows[-1]["round"]) for each in series for r in each.runs})
    headline = series[0].headline
    less = "" if headline.higher_is_better else " (less is better, and a gain is a decrease)"
    return [
        f"<p>{clients}after {_range(done)} rounds, with {_range(seeds)} seeds. The headline is "
        f"<b>{series[0].score}</b>: the test {headline.metric} of every client's own model after "
        f"its local steps, as the mean over clients{less}; ± is the standard deviation over seeds. "
        "Nothing was chosen on test data.</p>"
    ]


def _title_of_clients(series: Sequence[Series]) -> str:
    unit = series[0].headline.unit
    return f"{series[0].score} of every client" + (f", in {unit}" if unit else "")


def _range(numbers: Sequence[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{title}</summary>{inside}</details>"


def _svg(name: str, figure: Figure) -> str:
    """Return a figure as SVG in the page's own ink, with texts on its points."""
    buffer = io.StringIO()
    tips(figure)
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figure is the same text
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    tips(figure, on=False)
    text = buffer.getvalue()
    # The colour of the surrounding text, so that a dark page has light axes.
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<a xlink:href="tip:([^"]*)"[^>]*>', _tip, text).replace("</a>", "</g>")
    # Without a size of its own it takes the width of the page.
    text = re.sub(r'(<svg [^>]*?)width="[^"]*pt" height="[^"]*pt"', r"\1", text)
    # Names of parts are unique in a figure only; in a page they must not meet.
    return re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)


def _tip(match: re.Match[str]) -> str:
    """Return a group that carries its text, for a link that `tips` has made."""
    return f'<g data-tip="{html.escape(urllib.parse.unquote(match[1]))}">'


def _figure(name: str, svg: str, caption: str) -> str:
    svg = svg.replace("<svg ", f'<svg role=img aria-label="{html.escape(caption)}" ', 1)
    files = f"<a href={name}.png download>PNG</a>, <a href={name}.pdf download>PDF</a>"
    caption = f"<figcaption>{html.escape(caption)} {files}</figcaption>"
    return f"<figure id=figure-{name}><div class=scroll>{svg}</div>{caption}</figure>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    heads = "".join(f"<th><button>{html.escape(title)}</button></th>" for title in titles)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-value="{html.escape(str(value))}">{html.escape(text)}</td>'
            for text, value in row
        )
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=scroll><table class=sortable><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _scores(series: Sequence[Series]) -> tuple[list[str], list[list[Cell]]]:
    """Return titles and rows of the table of methods."""
    rivals = [each for name in RIVALS for each in series if each.name == name]
    models = ("global", "personal/received", "personal/adapted")
    titles = ["method", "seeds", "step size", *models, "worst decile"]
    titles += [f"over {rival.name} (won / lost)" for rival in rivals]
    titles += ["MB up / down per round", "s per round"]
    rows = []
    for each in series:
        first = each.runs[0]
        rate = first.config["algorithm"].get("learning_rate", "")
        row: list[Cell] = [(each.name, each.name), _plain(len(each.runs)), _plain(rate)]
        headline = each.headline
        row += [
            _spread(each.last(f"{headline.metric}/test/{model}/mean"), headline) for model in models
        ]
        row += [_spread(each.last(headline.key("test", "worst_decile")), headline)]
        row += [_over(each, rival) for rival in rivals]
        up, down = each.last("bytes_up"), each.last("bytes_down")
        row += [(f"{up[0] / 1e6:.3g} / {down[0] / 1e6:.3g}", up[0] + down[0])]
        seconds = float(np.median(each.last("seconds")))
        rows.append([*row, (f"{seconds:.3g}", seconds)])
    return titles, rows


def _plain(value: Any) -> Cell:
    return (f"{value:g}" if isinstance(value, int | float) else str(value), value)


def _spread(scores: Sequence[float], headline: Headline) -> Cell:
    """Return mean and standard deviation over seeds, as they are shown."""
    if not scores:
        return ("", "")
    values = np.array([headline.shown(score) for score in scores])
    spread = f" ± {headline.spread_text(values.std(ddof=1))}" if len(values) > 1 else ""
    return (f"{headline.text(values.mean())}{spread}", float(values.mean()))


def _over(found: Series, rival: Series) -> Cell:
    """Return the mean gain over a rival, client by client, with clients won and lost."""
    if found is rival or found.partition != rival.partition:
        return ("", "")
    _, values = paired(found.scores, rival.scores, found.headline)
    if not len(values):
        return ("", "")
    won, lost = int((values > 1e-9).sum()), int((values < -1e-9).sum())
    gain = found.headline.text(values.mean(), sign="+")
    return (f"{gain} ({won} / {lost})", float(values.mean()))


def _clients(series: Sequence[Series]) -> tuple[list[str], list[list[Cell]]]:
    """Return titles and rows of the table of clients."""
    of, text = [each.scores for each in series], series[0].headline.text
    names = sorted({client for scores in of for client in scores})
    examples = {client: n for each in series for client, n in each.runs[0].examples.items()}
    titles = ["client", "test examples", *(each.name for each in series)]
    rows = [
        [
            (client, client),
            _plain(examples.get(client, "")),
            *((text(a[client]), a[client]) if client in a else ("", "") for a in of),
        ]
        for client in names
    ]
    return titles, rows


def _settings(series: Sequence[Series]) -> Iterator[str]:
    """Return what the runs have in common, what tells them apart, and what they ran with."""
    configs = [files.flat_fields(each.runs[0].config) for each in series]
    for config in configs:
        config.pop("seed", None)
    names = sorted({name for config in configs for name in config})
    same = [n for n in names if all(config.get(n) == configs[0].get(n) for config in configs)]
    other = [name for name in names if name not in same]
    common = "\n".join(f"{name} = {configs[0][name]}" for name in same)
    yield _details("Settings of all runs", f"<pre>{html.escape(common)}</pre>")
    if other:
        rows = [[(n, n), *((c.get(n, ""),) * 2 for c in configs)] for n in other]
        table = _table(["field", *(each.name for each in series)], rows)
        yield _details("Settings that differ", table)
    lines = []
    for each in series:
        for run in each.runs:
            about = run.summary or {"state": "not finished"}
            known = {k: about[k] for k in ("device", "versions", "state") if k in about}
            lines.append(
                f"{each.name}, seed {run.config['seed']}: {run.path}\n  {json.dumps(known)}"
            )
    hashes = "\n".join(dict.fromkeys(f"partition {each.partition}" for each in series))
    text = html.escape("\n".join([hashes, *lines]))
    yield _details("Partition, devices, versions, files", f"<pre>{text}</pre>")
