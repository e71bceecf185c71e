"""Pieces of HTML. Whatever goes into a page goes through `fill`, which escapes it."""

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


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


def breakable(name: str) -> Html:
    """Return a name that may be broken after each of its slashes.

    >>> breakable("personal/<b>")
    'personal/<wbr>&lt;b&gt;'
    """
    return Html("/<wbr>".join(fill("{part}", part=part) for part in name.split("/")))


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: what it shows.
      value: what it is sorted by.
    """

    text: str
    value: float | str


EMPTY = Cell("", "")

LONG = 18
"""Characters of a cell, from which on it may be broken into lines."""


class Content(NamedTuple):
    """What a table shows.

    Attributes:
      titles: of the columns, the most important first: a narrow page shows those alone.
      rows: their cells, the first one names the row.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def table(content: Content) -> Html:
    """Return a table that a click on a title sorts."""
    heads = join(
        fill("<th><button>{title}</button></th>", title=breakable(title))
        for title in content.titles
    )

    def line(row: Sequence[Cell]) -> Html:
        cells = [
            fill(
                '<td data-value="{value}"{long}>{text}</td>',
                value=cell.value,
                long=Html(" class=long" * (number > 0 and len(cell.text) > LONG)),
                text=cell.text if number else breakable(cell.text),
            )
            for number, cell in enumerate(row)
        ]
        return fill("<tr>{cells}</tr>", cells=join(cells))

    return fill(
        "<div class=scroll><table class=sortable><thead><tr>{heads}</tr></thead>"
        "<tbody>{body}</tbody></table></div>",
        heads=heads,
        body=join(map(line, content.rows)),
    )


def details(title: str, inside: Html) -> Html:
    """Return what is shown when its title is clicked."""
    return fill("<details><summary>{title}</summary>{inside}</details>", title=title, inside=inside)


def command(text: str) -> Html:
    """Return a command whose lines are broken between its words, not within.

    >>> command("run --a")
    '<pre class=command><span>run</span> <span>--a</span></pre>'
    """
    lines = (
        " ".join(fill("<span>{word}</span>", word=word) for word in line.split(" "))
        for line in text.splitlines()
    )
    return fill("<pre class=command>{lines}</pre>", lines=Html("\n".join(lines)))


def paragraphs(texts: Iterable[str]) -> Html:
    """Return a paragraph for each text."""
    return join(fill("<p>{text}</p>", text=text) for text in texts)
