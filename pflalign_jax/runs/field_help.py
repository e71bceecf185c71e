"""What an argument means, in the words of its function's docstring: a hyperparameter's one text.

A docstring's section ``Args:`` (Google style) is read. Where an entry refers to another function,
its text stands in place of the reference, so that a user never has to look it up.
"""

import functools
import importlib
import inspect
import re
import types
from collections.abc import Callable

ENTRY = re.compile(r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*): *(.*)$")
"""The first line of an entry, ``name: text`` or ``name, other: text``."""

REFERENCE = re.compile(r"(?:as in|as of|see|of) `([\w.]+)`")
"""Words that may stand for the text of another function's argument of the same name."""

NAMESPACES = (
    "pflalign_jax",
    "pflalign_jax.algorithms",
    "pflalign_jax.federated",
    "pflalign_jax.federated.participation",
    "pflalign_jax.datasets",
    "pflalign_jax.models",
    "pflalign_jax.messages",
)
"""Where a referred name is looked up that the referring module itself does not know."""


@functools.cache
def argument_texts(function: Callable) -> dict[str, str]:
    """Return ``{argument: text}`` of a function's docstring, with references followed.

    The text has no markup and no full stop at its end. Arguments that the docstring does not
    describe, or describes by a reference that leads nowhere, are not there.

    >>> def scaled(x, low, high):
    ...     '''Scale.
    ...
    ...     Args:
    ...       x: ``[N]``, values of
    ...         any size.
    ...       low, high: the range.
    ...     '''
    >>> argument_texts(scaled)
    {'x': '[N], values of any size', 'low': 'the range', 'high': 'the range'}
    """
    found = {name: _followed(function, name, ()) for name in written_texts(function)}
    return {name: _plain(text) for name, text in found.items() if text is not None}


def written_texts(function: Callable) -> dict[str, str]:
    """Return ``{argument: text}`` as a function's docstring has it, references included."""
    texts: dict[str, list[str]] = {}
    names: list[str] = []
    for line in _args_section(inspect.getdoc(function) or ""):
        entry = ENTRY.match(line)
        if entry:
            names = [name.strip("* ") for name in entry[1].split(",")]
            texts |= {name: [entry[2]] for name in names}
        else:  # the entry above goes on
            for name in names:
                texts[name].append(line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in texts.items()}


def _args_section(docstring: str) -> list[str]:
    """Return the lines of the section ``Args:``, up to an empty line or the next section."""
    lines = docstring.splitlines()
    if "Args:" not in lines:
        return []
    lines = lines[lines.index("Args:") + 1 :]
    end = (i for i, line in enumerate(lines) if not line.startswith("  "))
    return lines[: next(end, len(lines))]


def _followed(function: Callable, argument: str, seen: tuple[Callable, ...]) -> str | None:
    """Return the text of an argument with references replaced; None if one leads nowhere.

    ``seen`` are the functions on the way here: two that refer to each other explain nothing.
    """
    text = written_texts(function).get(argument)
    if not text or function in seen:
        return None
    # From the last to the first, so that the places of those before it stay right.
    for reference in reversed(list(REFERENCE.finditer(text))):
        other = _function_named(reference[1], function)
        if other is None or argument not in written_texts(other):
            continue  # it names something else, like a table of allowed values
        inner = _followed(other, argument, (*seen, function))
        if inner is None:
            return None
        start, end = reference.span()
        text = text[:start] + inner.rstrip(".") + text[end:]
    return text


def _function_named(name: str, near: Callable) -> Callable | None:
    """Return the function that a docstring calls ``name``; None if there is none.

    It is looked for in the module of the function ``near``, in the modules that one imports, in
    the package's public namespaces, and, with dots in it, by its full name.
    """
    module, _, attribute = name.rpartition(".")
    try:
        modules = [importlib.import_module(module)] if module else _modules_seen_from(near)
    except ImportError:
        return None
    found = (getattr(module, attribute, None) for module in modules)
    return next((value for value in found if callable(value)), None)


def _modules_seen_from(function: Callable) -> list[types.ModuleType | None]:
    """Return the modules in which `_function_named` looks, in this order."""
    own = inspect.getmodule(function)
    imported = vars(own).values() if own is not None else ()
    others = [value for value in imported if isinstance(value, types.ModuleType)]
    return [own, *others, *map(importlib.import_module, NAMESPACES)]


def _plain(text: str) -> str:
    """Return a text for the terminal: without backticks and the full stop at its end."""
    return re.sub(r"`+", "", text).removesuffix(".")
