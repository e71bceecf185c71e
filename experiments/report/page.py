"""A report as one html file that needs nothing else."""

import html
import io
import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.compare.entries import RIVALS
from experiments.compare.paired import paired
from experiments.report.figures import INK, tips
from experiments.report.read import Series
from pflalign_jax.cli import plots
from pflalign_jax.runs import files
from pflalign_jax.runs.headline import Headline

HERE = pathlib.Path(__file__).parent


class Html(str):
    """Text that is HTML already, from `fill` or from a file of this package."""


def fill(template: str, **values: Any) -> Html:
    """Return HTML with values in its ``{}``, escaped unless they are `Html`.

    Names and values come from files of anybody: nothing else may put them into a page.

    >>> fill("<p>{name}</p>", name="<b>ob")
    '<p>&lt;b&gt;ob</p>'
    """
    escaped = {
        name: value if isinstance(value, Html) else html.escape(str(value))
        for name, value in values.items()
    }
    return Html(template.format_map(escaped))


def join(parts: Iterable[Html]) -> Html:
    """Return pieces of HTML as one."""
    return Html("".join(parts))


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
        plots.without_formulas(figure)
        drawn.append(_figure(name, _svg(name, figure), caption))
        FigureCanvasAgg(figure)
        figure.savefig(path / f"{name}.png", dpi=200)
        figure.savefig(path / f"{name}.pdf", metadata={"CreationDate": None})
    dataset = series[0].runs[0].data.get("name") or series[0].runs[0].config["dataset"]["name"]
    title = (
        f"{', '.join(each.name for each in series[:4])}{' ...' * (len(series) > 4)} on {dataset}"
    )
    style, script = (
        Html((HERE / file).read_text(encoding="utf-8")) for file in ("page.css", "page.js")
    )
    told = join(fill("<p>{note}</p>", note=note) for note in notes)
    parts = [
        Html("<!doctype html><html lang=en><meta charset=utf-8>"),
        Html('<meta name=viewport content="width=device-width, initial-scale=1">'),
        fill("<title>{title}</title><style>{style}</style>", title=title, style=style),
        fill("<h1>{title}</h1>", title=title),
        _about(series),
        *[fill("<div class=notes>{told}</div>", told=told)] * bool(notes),
        fill("<h2>Scores</h2>{table}", table=_table(*_scores(series))),
        fill("<h2>Figures</h2><div class=figures>{drawn}</div>", drawn=join(drawn)),
        Html("<h2>Clients</h2>"),
        _details(_title_of_clients(series), _table(*_clients(series))),
        Html("<h2>To have it again</h2>"),
        *(fill("<pre>{command}</pre>", command=command) for command in commands),
        *_settings(series),
        fill("<div id=tip role=status hidden></div><script>{script}</script>", script=script),
    ]
    files.write_text(path / "report.html", "\n".join(parts))


def _about(series: Sequence[Series]) -> Html:
    """Return the paragraph that says what was run and what its scores mean."""
    run = series[0].runs[0]
    data = (run.summary or {}).get("dataset", {})
    clients = f"{data['clients']} clients, " if "clients" in data else ""
    seeds = sorted({len(each.runs) for each in series})
    done = sorted({int(r.rows[-1]["round"]) for each in series for r in each.runs})
    headline = series[0].headline
    less = "" if headline.higher_is_better else " (less is better, and a gain is a decrease)"
    return fill(
        "<p>{clients}after {done} rounds, with {seeds} seeds. The headline is <b>{score}</b>: the "
        "test {metric} of every client's own model after its local steps, as the mean over "
        "clients{less}; ± is the standard deviation over seeds. Nothing was chosen on test "
        "data.</p>",
        clients=clients,
        done=_range(done),
        seeds=_range(seeds),
        score=series[0].score,
        metric=headline.metric,
        less=less,
    )


def _title_of_clients(series: Sequence[Series]) -> str:
    unit = series[0].headline.unit
    return f"{series[0].score} of every client" + (f", in {unit}" if unit else "")


def _range(numbers: Sequence[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))


def _details(title: str, inside: Html) -> Html:
    return fill("<details><summary>{title}</summary>{inside}</details>", title=title, inside=inside)


def _svg(name: str, figure: Figure) -> Html:
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
    return Html(re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text))


def _tip(match: re.Match[str]) -> str:
    """Return a group that carries its text, for a link that `tips` has made."""
    return fill('<g data-tip="{tip}">', tip=urllib.parse.unquote(match[1]))


def _figure(name: str, svg: Html, caption: str) -> Html:
    label = fill('<svg role=img aria-label="{caption}" ', caption=caption)
    return fill(
        '<figure id="figure-{name}"><div class=scroll>{svg}</div><figcaption>{caption} '
        '<a href="{name}.png" download>PNG</a>, <a href="{name}.pdf" download>PDF</a>'
        "</figcaption></figure>",
        name=name,
        svg=Html(svg.replace("<svg ", label, 1)),
        caption=caption,
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    heads = join(fill("<th><button>{title}</button></th>", title=title) for title in titles)

    def line(row: Sequence[Cell]) -> Html:
        cell = '<td data-value="{value}">{text}</td>'
        return fill("<tr>{cells}</tr>", cells=join(fill(cell, value=v, text=t) for t, v in row))

    return fill(
        "<div class=scroll><table class=sortable><thead><tr>{heads}</tr></thead>"
        "<tbody>{body}</tbody></table></div>",
        heads=heads,
        body=join(map(line, rows)),
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


def _settings(series: Sequence[Series]) -> Iterator[Html]:
    """Return what the runs have in common, what tells them apart, and what they ran with."""
    configs = [files.flat_fields(each.runs[0].config) for each in series]
    for config in configs:
        config.pop("seed", None)
    names = sorted({name for config in configs for name in config})
    same = [n for n in names if all(config.get(n) == configs[0].get(n) for config in configs)]
    other = [name for name in names if name not in same]
    common = "\n".join(f"{name} = {configs[0][name]}" for name in same)
    yield _details("Settings of all runs", fill("<pre>{common}</pre>", common=common))
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
    text = "\n".join([hashes, *lines])
    yield _details("Partition, devices, versions, files", fill("<pre>{text}</pre>", text=text))
