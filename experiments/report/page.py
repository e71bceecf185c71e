"""A report as one html file that needs nothing else."""

import io
import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.report import methods, tables
from experiments.report.html import (
    Cell,
    Content,
    Html,
    breakable,
    command,
    details,
    fill,
    join,
    paragraphs,
    table,
)
from experiments.report.reported import Series
from experiments.report.style import INK, tips
from pflalign_jax.cli import plots
from pflalign_jax.runs import files

HERE = pathlib.Path(__file__).parent


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
    dataset = series[0].first.data.get("name") or series[0].first.config["dataset"]["name"]
    title = (
        f"{', '.join(each.name for each in series[:4])}{' ...' * (len(series) > 4)} on {dataset}"
    )
    style, script = (
        Html((HERE / file).read_text(encoding="utf-8")) for file in ("page.css", "page.js")
    )
    parts = [
        Html("<!doctype html><html lang=en><meta charset=utf-8>"),
        Html('<meta name=viewport content="width=device-width, initial-scale=1">'),
        fill("<title>{title}</title><style>{style}</style>", title=title, style=style),
        fill("<h1>{title}</h1>", title=title),
        *_about(series),
        *[fill("<div class=notes>{told}</div>", told=paragraphs(notes))] * bool(notes),
        fill("<h2>Scores: {what}</h2>", what=series[0].headline.title),
        _scores(series),
        fill("<h2>Clients</h2>{clients}", clients=_clients(series)),
        fill("<h2>Figures</h2><div class=figures>{drawn}</div>", drawn=join(drawn)),
        Html("<h2>To have it again</h2>"),
        *map(command, commands),
        *_settings(series),
        fill("<div id=tip role=status hidden></div><script>{script}</script>", script=script),
    ]
    files.write_text(path / "report.html", "\n".join(parts))


def _about(series: Sequence[Series]) -> Iterator[Html]:
    """Return the paragraphs that say what was run and what its scores mean."""
    run, headline = series[0].first, series[0].headline
    data = (run.summary or {}).get("dataset", {})
    clients = f"{data['clients']} clients, " if "clients" in data else ""
    seeds = tables.range_text([len(each.runs) for each in series])
    done = tables.range_text([done for each in series for done in each.last_rounds])
    less = "" if headline.higher_is_better else " (less is better, and a gain is a decrease)"
    spread = "" if seeds == "1" else "; ± is the standard deviation over seeds"
    yield fill(
        "<p>{clients}after {rounds}, {seeds}. The headline is <b>{score}</b>: the test {metric} of "
        "every client's own model after its local steps, as the mean over clients{less}{spread}. "
        "Nothing was chosen on test data.</p>",
        clients=clients,
        rounds=_count(done, "round"),
        seeds=_count(seeds, "seed"),
        score=breakable(series[0].score),
        metric=headline.metric,
        less=less,
        spread=spread,
    )
    if len(series) == 1:
        yield fill("<p>{result}</p>", result=_result(series[0]))


def _result(series: Series) -> Html:
    """Return the headline after the last round, and after the one best on validation."""
    key, headline = series.headline.key("test"), series.headline

    def scored(values: Sequence[float]) -> Html:
        text = tables.spread_cell(values, headline).text or "no value"
        return fill("<b>{text}</b>", text=f"{text} {headline.unit}".strip())

    last = fill("After the last round: {score}.", score=scored(series.last(key)))
    rounds = series.best_rounds
    if not rounds:
        return fill("{last} No round is chosen, as there are no validation scores.", last=last)
    if rounds == series.last_rounds:
        return fill("{last} No round before did better on validation.", last=last)
    return fill(
        "{last} After round {rounds}, the best on validation: {score}.",
        last=last,
        rounds=tables.range_text(rounds),
        score=scored(series.best(key)),
    )


def _count(number: str, what: str) -> str:
    """Return a number of things.

    >>> _count("1", "seed"), _count("2 to 3", "seed")
    ('1 seed', '2 to 3 seeds')
    """
    return f"{number} {what}{'s' * (number != '1')}"


def _scores(series: Sequence[Series]) -> Html:
    """Return the table of scores; below it who wins, or what a single run has cost."""
    if len(series) > 1:
        scores = table(methods.of_methods(series))
        return join([scores, paragraphs([methods.who_wins(series)])])
    (one,) = series
    rate = one.first.config["algorithm"].get("learning_rate")
    text = (
        f"{f'Step size {rate:g}; ' if isinstance(rate, int | float) else ''}MB up / down per round "
        f"{tables.traffic(one).text}; seconds per round {tables.seconds(one).text}."
    )
    return join([table(tables.of_one(one)), paragraphs([text])])


def _clients(series: Sequence[Series]) -> Html:
    """Return the worst clients, and a table of all that can be opened."""
    best, unit = series[0], series[0].headline.unit
    title = f"{best.score} of every client" + (f", in {unit}" if unit else "")
    of = f" with {best.name}" if len(series) > 1 else ""
    return join(
        [
            fill("<h3>The worst clients{of}</h3>", of=of),
            table(tables.worst_clients(best)),
            paragraphs(tables.about_worst(best)),
            details(title, table(tables.of_clients(series))),
        ]
    )


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
        '<figure id="figure-{name}">{svg}<figcaption>{caption} '
        '<a href="{name}.png" download>PNG</a>, <a href="{name}.pdf" download>PDF</a>'
        "</figcaption></figure>",
        name=name,
        svg=Html(svg.replace("<svg ", label, 1)),
        caption=caption,
    )


def _settings(series: Sequence[Series]) -> Iterator[Html]:
    """Return what the runs have in common, what tells them apart, and what they ran with."""
    configs = [files.flat_fields(each.first.config) for each in series]
    for config in configs:
        config.pop("seed", None)
    names = sorted({name for config in configs for name in config})
    same = [n for n in names if all(config.get(n) == configs[0].get(n) for config in configs)]
    other = [name for name in names if name not in same]
    common = "\n".join(f"{name} = {configs[0][name]}" for name in same)
    title = "Settings of all runs" if sum(len(each.runs) for each in series) > 1 else "Settings"
    yield details(title, fill("<pre>{common}</pre>", common=common))
    if other:
        rows = [[Cell(n, n), *(Cell(*(c.get(n, ""),) * 2) for c in configs)] for n in other]
        content = Content(["field", *(each.name for each in series)], rows)
        yield details("Settings that differ", table(content))
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
    yield details("Partition, devices, versions, files", fill("<pre>{text}</pre>", text=text))
