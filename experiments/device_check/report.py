"""What a check found, written as it comes."""

import json
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Rows = Iterable[dict[str, Any]]

TIME_IS_UP = "the time is up"


class Report:
    """A check's figures, in a file that is whole after every row.

    Attributes:
      content: ``{"device": ..., "sections": {name: section}}``; a section has its ``rows``, the
        ``seconds`` that it took, and where it did not end by itself ``error`` or ``cut``.
    """

    def __init__(
        self, file: pathlib.Path | None, seconds: float, say: Callable[[str], None]
    ) -> None:
        self.content: dict[str, Any] = {"sections": {}}
        self._file, self._say = file, say
        self._end = time.monotonic() + seconds

    def run(self, name: str, section: Callable[[], Rows]) -> None:
        """Run a section: its rows are kept, whatever happens, and nothing that it raises gets out.

        It is cut short after the row with which the time is up, and not begun after that. A list
        has been measured already, and is kept as a whole.
        """
        rows: list[dict[str, Any]] = []
        entry: dict[str, Any] = {"rows": rows}
        self.content["sections"][name] = entry
        begin = time.monotonic()
        try:
            if begin > self._end:
                entry["cut"] = TIME_IS_UP
            else:
                self._take(name, section(), entry)
        except Exception as error:  # one section must not end the others
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = str(error).splitlines()[0] if str(error) else ""
            entry["error"] = f"{type(error).__name__}: {text} ({where.name}, line {where.lineno})"
            self._say(f"{name}: {entry['error']}")
        entry["seconds"] = round(time.monotonic() - begin, 1)
        self.write()

    def _take(self, name: str, rows: Rows, entry: dict[str, Any]) -> None:
        for row in rows:
            entry["rows"].append(row)
            self._say(f"{name}: {', '.join(f'{k} {_short(v)}' for k, v in row.items())}")
            self.write()
            if time.monotonic() > self._end and not isinstance(rows, list):
                entry["cut"] = TIME_IS_UP
                return

    def write(self) -> None:
        """Write the file, if there is one; a reader never sees half of it."""
        if self._file is not None:
            part = self._file.with_name(self._file.name + ".part")
            part.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
            os.replace(part, self._file)

    def failures(self) -> list[str]:
        """Return what went wrong: sections that failed or were cut, and rows that are not ``ok``.

        What was cut was not checked, so that nothing can be said for it.
        """
        found = []
        for name, section in self.content["sections"].items():
            if "error" in section:
                found.append(f"{name}: {section['error']}")
            if "cut" in section:
                found.append(
                    f"{name}: cut after {len(section['rows'])} rows, {section['cut']}; give more "
                    f'--seconds, or run it alone: --sections="{name}"'
                )
            bad = [row for row in section["rows"] if not row.get("ok", True)]
            found += [f"{name}: {_title(row)} is not as on the CPU" for row in bad]
        return found


def _title(row: Mapping[str, Any]) -> str:
    return str(next(iter(row.values())))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
