"""The README's pictures are of what is in the repository now, small, and name no machine."""

import importlib.util
import pathlib
import xml.etree.ElementTree as ET

import pytest

ROOT = pathlib.Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


def script(name):
    spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_has_the_numbers_of_the_tables():
    """After a change of docs/results.md: ``python docs/images/results.py``."""
    results = script("results")
    tables = results.read_tables()
    intents = tables["intents, 15 of 150"]
    assert intents["ditto"] == (95.4, 0.4) and len(intents) == 33
    assert results.hash_of(tables) in results.PICTURE.read_text()
    changed = tables | {"intents, 15 of 150": intents | {"ditto": results.Score(95.5, 0.4)}}
    assert results.hash_of(changed) not in results.PICTURE.read_text()


@pytest.mark.parametrize("name", ["results.svg", "run.svg"])
def test_pictures_are_whole_and_small(name):
    assert f"docs/images/{name}" in (ROOT / "README.md").read_text()
    text = (IMAGES / name).read_text()
    assert ET.fromstring(text).tag.endswith("svg") and len(text) < 300_000
    assert not any(place in text for place in ("/home/", "/root", "/work", "/tmp", "site-packages"))
    assert "experiments/digits.py" in text or name == "results.svg"


def test_a_recording_is_typed_compressed_and_held():
    pytest.importorskip("pyte")
    record = script("record")
    printed = [(5.0, b"one\r\n"), (5.1, b"\x1b[32mt\x1b[1mwo\x1b[0m\r\n"), (90.0, b"<three>")]
    shown = record.pictures(("python", "-m", "a"), printed)
    assert [p.time for p in shown] == sorted(p.time for p in shown)
    assert shown[-1].time == pytest.approx(record.SECONDS - record.LAST)
    assert shown[-2].time - shown[-3].time < shown[-1].time - shown[-2].time < 7
    rows = shown[-1].lines[:4]
    assert rows[0] == ((0, "$ python -m a", "#d8dee9", False),)
    assert rows[2][0] == (0, "t", "#98c379", False) and rows[2][1][1:] == ("wo", "#98c379", True)
    svg = record.as_svg(shown)
    assert ET.fromstring(svg) is not None and "&lt;three&gt;" in svg
