"""The code of README and docs: Python runs as it stands, commands are those that exist."""

import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from experiments import benchmark, command_line, compare, partition, predict, run  # noqa: F401
from experiments import config as vocabulary

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# A line before a block that takes long: it runs where slow tests do.
SLOW = "<!-- slow -->"
# Values in commands that a reader fills in.
FILLED_IN = {"DIRECTORY", "FILE", "PATH", "..."}


def blocks(page, language):
    """Return ``(whether it is slow, code)`` of the page's blocks in a language."""
    found = re.findall(rf"(^{SLOW}\n+)?^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)
    return [(bool(slow), code) for slow, code in found]


def named(page):
    return page.relative_to(DOCS if DOCS in page.parents else ROOT).as_posix()


PYTHON = [
    pytest.param(code, id=f"{named(page)} {i}", marks=[pytest.mark.slow] if slow else [])
    for page in PAGES
    for i, (slow, code) in enumerate(blocks(page, "python"), 1)
]
COMMANDS = [
    pytest.param(words, id=f"{named(page)} {i}")
    for page in PAGES
    for i, words in enumerate(
        (
            shlex.split(line, comments=True)
            for _, code in blocks(page, "sh")
            for line in code.replace("\\\n", " ").splitlines()
        ),
        1,
    )
    if words
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "a page", "exec"), {"__name__": "__main__"})


def test_there_are_blocks():
    assert len(PYTHON) >= 20 and len(COMMANDS) >= 30


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_of_a_kind_that_is_tested(page):
    fences = re.findall(r"^ *(```.*)$", page.read_text(), re.M)
    languages = {fence.removeprefix("```") for fence in fences[::2]}
    assert languages <= {"python", "py", "sh", "text"}
    for _, code in blocks(page, "py"):
        compile(code, named(page), "exec")


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_can_be_given(words):
    """What a line names exists: module, flags, the config's file and fields with their values."""
    while re.match(r"[A-Z_]+=", words[0]) or words[0] == "srun":
        words = words[1:]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in words[1:]:
            assert f"\n{target}:" in makefile, target
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / w).exists() for w in words[3:] if w.startswith("tests/"))
    elif words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        path = ROOT / words[2].replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), words[2]
        check_flags(words[2], words[3:])
    else:
        assert words[0] in ("pip", ".", "sbatch", "export", "cd", "git"), words


def check_flags(module, arguments):
    given = [word for word in arguments if word.startswith("--")]
    ours = [w for w in given if re.match(r"--config[.=]", w) and w.split("=")[1] not in FILLED_IN]
    for word in given:
        name = word.removeprefix("--").split("=")[0].split(".")[0]
        assert name == "help" or name in flags.FLAGS or f'"{name}"' in source(module), word
    if any(word.startswith("--config=") for word in ours):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(["a page", *(w.replace("=experiments/", f"={ROOT}/experiments/") for w in ours)])
        vocabulary.resolve(values.config)


def source(module):
    path = ROOT / module.replace(".", "/")
    path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__main__.py"
    return path.read_text()
