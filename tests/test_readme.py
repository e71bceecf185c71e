"""The Python of README and docs runs as it stands, and their commands exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.name} {i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S), 1)
]


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks_run(code):
    exec(compile(code, "a page", "exec"), {})


def test_there_are_blocks():
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page):
    text = page.read_text()
    for config in re.findall(r"--config=(\S+\.py)", text):
        assert (ROOT / config).is_file(), config
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", text, re.M):
        assert f"\n{target}:" in targets, target
