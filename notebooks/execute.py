"""Run the notebooks from top to bottom and keep their outputs, to be read where nothing runs.

python notebooks/execute.py [1 4 ...]

Without numbers all are run but those in `NOT_KEPT`. Figures above `MOST_BYTES` are refused.

"""

import base64
import hashlib
import json
import os
import pathlib
import sys

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOST_BYTES = 200_000
"""Of a figure."""

NOT_KEPT = {
    "7": "its models' weights are 175 MB (make models), and a run takes 16 minutes on two CPU cores"
}
"""Notebooks without outputs, by number, and why."""


def code_hash(book: nbformat.NotebookNode) -> str:
    """Return a sha256 of a notebook's code, by which outputs are told that are not its own."""
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def figures(book: nbformat.NotebookNode) -> list[bytes]:
    """Return the images in a notebook's outputs."""
    shown = [o.data for c in book.cells for o in c.get("outputs", ()) if "data" in o]
    return [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]


def executed(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run, without times and what programs only log."""
    ran = nbformat.from_dict(json.loads(json.dumps(book)))
    os.environ["PYTHONPATH"] = str(ROOT)
    place = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(ran, timeout=3600, resources=place).execute()
    for cell, found in zip(book.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = found.execution_count
            cell.outputs = [o for o in found.outputs if o.get("name") != "stderr"]
    book.metadata["code_sha256"] = code_hash(book)
    return book


def main(numbers: list[str]) -> None:
    """Run the notebooks of these numbers."""
    for path in sorted(pathlib.Path(__file__).parent.glob("*.ipynb")):
        number = path.stem[0]
        if number not in numbers and (numbers or number in NOT_KEPT):
            continue
        book = executed(nbformat.read(path, as_version=4))
        sizes = [len(figure) for figure in figures(book)]
        if any(size > MOST_BYTES for size in sizes):
            sys.exit(f"{path} has figures of {sizes} bytes; make them smaller, or their dpi")
        nbformat.write(book, path)
        print(f"{path.name}: {path.stat().st_size // 1000} kB, {len(sizes)} figures")


if __name__ == "__main__":
    main(sys.argv[1:])
