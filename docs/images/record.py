"""Record a command in a terminal as an animated SVG: the README's run.svg.

python docs/images/record.py

The command runs for real, in a terminal of its own; pauses are shortened and all is compressed to
`SECONDS`. Nothing but the text that it printed is in the picture.

"""

import fcntl
import html
import os
import pathlib
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from typing import NamedTuple

import pyte

HERE = pathlib.Path(__file__).parent
ROOT, PICTURE = HERE.parents[1], HERE / "run.svg"
COMMAND = ("python", "-m", "experiments.run", "--config=experiments/digits.py")

COLUMNS, ROWS = 80, 31
SECONDS, LAST = 20.0, 7.0
"""Of the whole recording, and of the last picture in it."""

PAUSE = 0.5
"""Seconds to which longer pauses are cut before everything is compressed."""

TYPED = 1.5
"""Seconds in which the command is typed."""

GAP = 0.05
"""Seconds between two pictures, at least."""

WIDTH, HEIGHT, MARGIN = 8.0, 17, 12
"""Of a character, in pixels, and of the border."""

COLOURS = {
    "default": "#d8dee9", "black": "#4c566a", "red": "#e06c75", "green": "#98c379",
    "brown": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2",
    "white": "#eceff4",
}  # fmt: skip
"""What pyte calls the colours of a terminal, and what they are here."""


class Picture(NamedTuple):
    """What the terminal shows from a moment on.

    Attributes:
      time: in seconds.
      lines: of each row its runs of equal style: ``(column, text, colour, bold)``.
    """

    time: float
    lines: tuple[tuple[tuple[int, str, str, bool], ...], ...]


def record(command: Sequence[str], cache: str) -> list[tuple[float, bytes]]:
    """Run a command in a terminal; return what it printed, and when.

    Args:
      command: of Python.
      cache: where JAX keeps compiled programs; an empty folder.

    Raises:
      SystemExit: if it fails.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "JAX_COMPILATION_CACHE_DIR": cache}
    arguments = [sys.executable, *command[1:]]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    began, printed = time.monotonic(), []
    while process.poll() is None or select.select([ours], [], [], 0.2)[0]:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            text = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        printed.append((time.monotonic() - began, text))
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    return printed


def pictures(command: Sequence[str], printed: list[tuple[float, bytes]]) -> list[Picture]:
    """Return what the terminal shows: the command typed, then what it printed, compressed."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    text, found = f"$ {' '.join(command)}", []
    stream.feed(b"$ ")
    for end in range(3, len(text) + 1):
        stream.feed(text[end - 1].encode())
        if end % 3 == 0 or end == len(text):
            found.append(Picture(TYPED * end / len(text), _lines(screen)))
    stream.feed(b"\r\n")
    now, before, shown = 0.0, 0.0, []
    for moment, part in printed:
        now, before = now + min(moment - before, PAUSE), moment
        stream.feed(part)
        shown.append(Picture(now, _lines(screen)))
    scale = (SECONDS - LAST - TYPED) / now
    for picture in shown:
        moment = TYPED + scale * picture.time
        if picture.lines != found[-1].lines:
            # Of pictures that follow fast the last one stays.
            if moment - found[-1].time < GAP and len(found) > 1:
                found.pop()
            found.append(picture._replace(time=moment))
    return found


def _lines(screen: pyte.Screen) -> tuple:
    rows = []
    for y in range(ROWS):
        row, runs = screen.buffer[y], []
        for x in range(COLUMNS):
            char = row[x]
            style = COLOURS.get(char.fg, f"#{char.fg}"), char.bold
            if runs and runs[-1][2:] == style:
                runs[-1] = (runs[-1][0], runs[-1][1] + char.data, *style)
            else:
                runs.append((x, char.data, *style))
        # Spaces have no colour, and those at the end of a line no place.
        rows.append(tuple((x, text.rstrip(), *style) for x, text, *style in runs if text.strip()))
    return tuple(rows)


def as_svg(shown: Sequence[Picture]) -> str:
    """Return an animated SVG: all pictures one below the other, of which one is seen at a time."""
    lines: dict[tuple, int] = {}
    height = ROWS * HEIGHT + 2 * MARGIN
    strip = []
    for i, picture in enumerate(shown):
        for y, line in enumerate(picture.lines):
            if line:
                number = lines.setdefault(line, len(lines))
                top = i * height + MARGIN + y * HEIGHT
                strip.append(f'<use href="#l{number}" y="{top}"/>')
    steps = [
        f"{100 * picture.time / SECONDS:.2f}%{{transform:translateY(-{i * height}px)}}"
        for i, picture in enumerate(shown)
    ]
    steps[0] = steps[0].replace(steps[0].split("{")[0], "0%", 1)
    last = f"100%{{transform:translateY(-{(len(shown) - 1) * height}px)}}"
    width = COLUMNS * WIDTH + 2 * MARGIN
    defined = "".join(f'<g id="l{n}">{_text(line)}</g>' for line, n in lines.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" '
        f'width="{width:g}" height="{height}">\n<title>{html.escape(" ".join(COMMAND))}</title>\n'
        "<style>text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',"
        "monospace;white-space:pre}"
        f"#strip{{animation:roll {SECONDS:g}s step-end infinite}}"
        f"@keyframes roll{{{''.join(steps)}{last}}}</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="#2e3440"/>\n<defs>{defined}</defs>\n'
        f'<g id="strip">{"".join(strip)}</g>\n</svg>\n'
    )


def _text(line: tuple) -> str:
    """Return the runs of a line; each is as wide as its characters, whatever the font is."""
    found = []
    for x, text, colour, bold in line:
        left = MARGIN + WIDTH * (x + len(text) - len(text.lstrip()))
        shown = text.strip()
        weight = ' font-weight="bold"' if bold else ""
        found.append(
            f'<text x="{left:g}" y="13" textLength="{WIDTH * len(shown):g}" '
            f'lengthAdjust="spacingAndGlyphs" fill="{colour}"{weight}>{html.escape(shown)}</text>'
        )
    return "".join(found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        text = as_svg(pictures(COMMAND, record(COMMAND, cache)))
    PICTURE.write_text(text, encoding="utf-8")
    print(f"{PICTURE}: {len(text) // 1000} kB")
