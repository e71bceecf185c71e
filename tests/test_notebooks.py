"""Notebooks run from top to bottom at small settings; in git they hold no outputs."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"ROUNDS": 3, "SEEDS": 2}
SMALL_MODELS = ROOT / "tests" / "models" / "pretrained"


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
def test_outputs_are_cleared_and_the_badge_opens_this_notebook(path):
    book = read(path)
    for cell in book.cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)
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
