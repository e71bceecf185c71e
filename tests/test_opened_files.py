"""Files that the package opens: texts are UTF-8 whatever the locale says."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("pflalign_jax", "experiments") for path in (ROOT / folder).rglob("*.py")
)

BINARY = ("os", "archive", "_archive", "Image", "tarfile")
"""What ``.open`` is called on that opens no text."""


def opened_texts(tree):
    """Yield the calls that open a file as text."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute):
            name, whose = call.func.attr, ast.unparse(call.func.value).split(".")[-1]
        else:
            name, whose = getattr(call.func, "id", ""), ""
        # `write_text` of `pflalign_jax.runs.files` is a function.
        if name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute):
            if whose != "files":
                yield call
        if name == "open" and whose not in BINARY:
            # Of Path.open the first, of open the second.
            modes = [a for a in call.args if isinstance(a, ast.Constant)]
            if not any("b" in mode.value for mode in modes) and not (call.args and not modes):
                yield call


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_have_an_encoding(path):
    for call in opened_texts(ast.parse(path.read_text(encoding="utf-8"))):
        assert any(k.arg == "encoding" for k in call.keywords), f"line {call.lineno}"
