"""Griffe extension: examples in docstrings (`>>>`) become blocks of code on the API pages."""

import re
from typing import Any

import griffe

# A paragraph that begins with a prompt: up to the next empty line.
EXAMPLE = re.compile(r"^>>> .*?(?=^\s*$|\Z)", re.M | re.S)


class Doctests(griffe.Extension):
    """Fence the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of one object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)


def fenced(match: re.Match) -> str:
    """Return the example as a fenced block."""
    return f"```pycon\n{match[0].rstrip()}\n```\n"
