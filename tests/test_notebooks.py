"""Notebooks run from top to bottom at small settings; in git they hold small outputs."""

import importlib.util
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"ROUNDS": 3, "SEEDS": 2}
SMALL_MODELS = ROOT / "tests" / "models" / "pretrained"


_SPEC = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(execute)


def read(path):
    return nbformat.read(path, as_version=4)


def small_decoder(folder):
    """Write a random decoder with a context of 64 tokens, and return its folder."""
    import small_models

    return small_models.write_folder(
        folder,
        small_models.DECODER | {"max_position_embeddings": 64},
        small_models.decoder_tensors(),
        small_models.decoder_tokenizer(),
        pad_token="<|pad|>",
        eos_token="<|end|>",
    )


def test_all_seven_are_there():
    assert [path.stem[0] for path in BOOKS] == list("1234567")


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_its_code_and_small(path):
    """After a change of code: ``python notebooks/execute.py NUMBER``."""
    book = read(path)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if reason := execute.NOT_KEPT.get(path.stem[0]):
        assert not any(cell.outputs for cell in code)
        assert "make models" in reason and "16 minutes" in "".join(c.source for c in book.cells)
        return
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert book.metadata["code_sha256"] == execute.code_hash(book), "the code was changed since"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not any(o.output_type == "error" for o in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert all(len(figure) <= execute.MOST_BYTES for figure in execute.figures(book))
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_the_badge_opens_this_notebook(path):
    book = read(path)
    assert f"blob/main/notebooks/{path.name}" in book.cells[0].source
    assert "git" in book.cells[1].source  # the cell that installs


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem[0] in "234567" else [])
        for p in BOOKS  # the first is run always
    ],
)
def test_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = read(path)
    (settings,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", ()))
    names = [line.split(" = ")[0] for line in settings.source.splitlines()]
    values = dict(SMALL)
    if "MODEL" in names:
        monkeypatch.syspath_prepend(SMALL_MODELS)
        values["MODEL"] = str(small_decoder(tmp_path / "decoder"))
    settings.source = "\n".join(f"{name} = {values[name]!r}" for name in names)
    place = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(book, timeout=300, resources=place).execute()
