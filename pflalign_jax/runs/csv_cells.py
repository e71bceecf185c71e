"""Texts in csv files that spreadsheets do not take for formulas."""

from typing import Any

FORMULA = ("=", "+", "-", "@")
"""What a formula begins with."""

QUOTE = "'"
"""Before a text, it says to spreadsheets that it is one."""


def cell(value: Any) -> Any:
    """Return what stands in a csv file for a value; numbers stay as they are.

    >>> cell("=1+1"), cell("ann"), cell(-1.5)
    ("'=1+1", 'ann', -1.5)
    """
    is_text = isinstance(value, str) and value.startswith((*FORMULA, QUOTE))
    return QUOTE + value if is_text else value


def text_of(found: str) -> str:
    """Return the text that `cell` wrote.

    >>> text_of("'=1+1"), text_of("ann")
    ('=1+1', 'ann')
    """
    return found.removeprefix(QUOTE)
