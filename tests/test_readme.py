"""The README's Python runs as it stands, and its commands exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block {i + 1}" for i in range(len(BLOCKS))])
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


def test_commands_name_what_exists():
    for config in re.findall(r"--config=(\S+\.py)", README):
        assert (ROOT / config).is_file(), config
    for module in re.findall(r"python -m (experiments\.\w+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, re.M):
        assert f"\n{target}:" in targets, target
