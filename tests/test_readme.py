"""The code of README and docs: Python runs as it stands; commands can be given, and run."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from docs import algorithm_table
from experiments.sweep.grid import RANGE, take_grid
from pflalign_jax import algorithms, datasets
from pflalign_jax.runs import config as vocabulary

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# A line before a block of Python that takes long: it runs where slow tests do.
SLOW = "<!-- slow -->"
# Modules whose flags come from pflalign_jax.cli, too.
CLI = ("pflalign_jax.cli.flags", "pflalign_jax.cli.devices")
SHARED = {
    f"experiments.{module}": CLI
    for module in "run compare sweep partition benchmark deploy features when".split()
}
SHARED["experiments.certify"] = ("experiments.certificates.asking",)
SHARED["experiments.certificates"] = (*CLI, "experiments.certificates.asking")
# Commands that need what a test does not have: files or machines of the reader, more time.
NEEDS_MORE = ("DIRECTORY", "FILE", "HOST", "...", "femnist", "ablation", "--help", "--against")
NEEDS_MORE += ("--scale", "--distributed", "python -m pytest")
OTHERS = ("pip", ".", "gcloud", "set", "shift", "test", "openssl", "ssh-keygen")
OTHERS += ("flwr", "flower-superlink", "flower-supernode")
# What makes a command short.
SHORT = {
    "run": ["--config.rounds=2", "--config.eval_every=1"],
    "compare": ["--config.rounds=2", "--algorithms=fedavg,local", "--seeds=1",
                "--config.compare.grid=(0.1,)", "--config.compare.extensions=0",
                "--config.compare.search_rounds=1"],
    "sweep": ["--config.rounds=1", "--seeds=1", "--config.compare.grid=(0.1,)",
              "--config.compare.extensions=0"],
    "benchmark": ["--rounds=1"],
}  # fmt: skip


def blocks(page, language):
    """Return ``(whether it is slow, code)`` of the page's blocks in a language."""
    found = re.findall(rf"(^{SLOW}\n+)?^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)
    return [(bool(slow), code) for slow, code in found]


def commands(page):
    """Return the page's commands, each as its words, with 1 for every variable of the shell."""
    code = "".join(code for _, code in blocks(page, "sh")).replace("\\\n", " ")
    lines = (shlex.split(re.sub(r"\$\w+", "1", line), comments=True) for line in code.splitlines())
    return [words for words in lines if words]


def ours(words):
    """Return module and arguments of one of our commands, None of another."""
    while re.match(r"[A-Z_]+=", words[0]) or words[0] == "srun":
        words = words[1:]  # variables, and what starts a command on several machines
    if words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        return words[2], words[3:]
    return None


def can_run(words):
    return ours(words) is not None and not any(word in " ".join(words) for word in NEEDS_MORE)


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
    for i, words in enumerate(commands(page), 1)
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "a page", "exec"), {"__name__": "__main__"})


def test_there_are_blocks():
    assert len(PYTHON) >= 20 and len(COMMANDS) >= 50


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_of_a_kind_that_is_tested(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.M)
    assert set(fences[::2]) <= {"python", "py", "sh", "text"} and set(fences[1::2]) <= {""}
    for _, code in blocks(page, "py"):  # fragments
        compile(code, named(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_blocks_of_commands_are_whole(page):
    for _, code in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True)
        assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("words", COMMANDS)
def test_commands_can_be_given(words):
    """What a line names exists: module, flags, the config's file and fields with their values."""
    if ours(words):
        check_flags(*ours(words))
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in words[1:]:
            assert f"\n{target}:" in makefile, target
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))
    else:
        assert words[0] in OTHERS, words


def check_flags(module, arguments):
    """The module, or what it shares with others, has the flags; the config has the fields."""
    defined = [name for where in (module, *SHARED.get(module, ())) for name in flags_of(where)]
    given = [word for word in arguments if word.startswith("--")]
    if module == "experiments.sweep":
        grid, given = take_grid(given)
        assert grid
        # One after another: not all go together.
        for name, texts in grid.items():
            for text in texts:
                # Of a range both ends.
                ends = RANGE.fullmatch(text)
                for value in ends.groups()[:2] if ends else [text]:
                    argument = f"--config.{name}={value}"
                    check_flags("experiments.run", [*given[:1], argument])
    for word in given:
        assert re.match(r"--(\w+)", word)[1] in ("help", *defined), word
    fields = [word for word in given if re.match(r"--config[.=]", word)]
    if fields and "--config=..." not in fields:
        if not any(word.startswith("--config=") for word in fields):  # that of a run in --workdir
            fields = ["--config=experiments/digits.py", *fields]
        argv = ["a page", *map(with_root, fields)]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
        vocabulary.resolve(values["config"].value)


def flags_of(module):
    """Return the names of the flags that a module defines, without importing it: some collide."""
    path = ROOT / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return re.findall(r'(?:flags\.DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"', path.read_text())


def links(page):
    """Return the targets of a page's links that are files, without blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [target for target in targets if not target.startswith(("http:", "https:"))]


def anchors(page):
    """Return the anchors of a page's headings, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_links_lead_to_files_of_the_repository(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def test_pages_of_the_root_have_their_place_on_the_site():
    """`mkdocs build --strict` tells whether all other links are right there, too."""
    pytest.importorskip("mkdocs")
    from docs import hooks

    for page in sorted(DOCS.rglob("*.md")):
        roots = [
            target for target in links(page) if (page.parent / target).resolve().parent == ROOT
        ]
        shown = hooks.on_page_markdown("\n".join(f"[a]({target})" for target in roots))
        for target in re.findall(r"\(([^)#]+)", shown):
            there = (page.parent / target).resolve().relative_to(DOCS)
            assert str(there) in hooks.PAGES.values(), target


def test_every_algorithm_has_a_measured_time():
    assert sorted(algorithm_table.round_times()) == sorted(algorithms.NAMES)


def test_the_table_of_algorithms_says_what_the_code_does():
    """After a change of a docstring, an argument or a time: ``python -m docs.algorithm_table``."""
    rows = algorithm_table.committed_cells()
    assert [row["name"] for row in rows] == [f"`{name}`" for name in algorithms.NAMES]
    for name, row in zip(algorithms.NAMES, rows, strict=True):
        assert algorithm_table.read_cells(name).items() <= row.items(), name
    assert set(rows[0]) == {*algorithm_table.READ, *algorithm_table.TOLD}


@pytest.mark.slow
def test_the_table_of_algorithms_has_what_their_functions_tell():
    assert algorithm_table.committed() == algorithm_table.generated()


def with_root(word):
    return word.replace("--config=experiments/", f"--config={ROOT}/experiments/")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(map(can_run, commands(page)))], ids=named
)
def test_commands_run(page, tmp_path, monkeypatch):
    """A page's commands, in order and in one directory, after what writes files there."""
    rows, columns = datasets.digits().x[:5].reshape(5, 64), ",".join(f"pixel{i}" for i in range(64))
    np.savetxt(tmp_path / "new.csv", rows, delimiter=",", header=columns, comments="")
    monkeypatch.chdir(tmp_path)
    for _, code in blocks(page, "python"):
        if any(call in code for call in ("savez(", "write_text(", ".save(")):  # files to be read
            exec(compile(code, "a page", "exec"), {"__name__": "__main__"})
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    for module, arguments in map(ours, filter(can_run, commands(page))):
        given = []
        for word in map(with_root, arguments):
            given += sorted(map(str, tmp_path.glob(word))) if "*" in word else [word]
        given += SHORT.get(module.split(".")[1], [])
        done = subprocess.run(
            [sys.executable, "-m", module, *given],
            cwd=tmp_path,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{module} {given}\n{done.stdout}\n{done.stderr}"
