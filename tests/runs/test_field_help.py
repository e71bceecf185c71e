"""The texts of arguments: read from docstrings, references followed, for every field there is."""

import re

import pytest

from pflalign_jax.runs import field_help
from pflalign_jax.runs.config import RUN_FIELDS, default_config
from pflalign_jax.runs.explain import COMPARISON, NAMES, argument_text, meaning
from pflalign_jax.runs.factories import FACTORIES, parameters
from pflalign_jax.runs.field_help import argument_texts, written_texts
from pflalign_jax.runs.message_config import FIELDS

DANGLING = re.compile(r"\bsee\b|\bas (in|of) (?!(a|the)\b)|`")
"""What only makes sense to a reader who goes and looks elsewhere."""


def base(rate, epochs, seed):
    """Do nothing.

    Args:
      rate: step size, > 0;
        not checked.
      epochs, seed: two numbers: see the paper.

    Returns:
      rate: nothing.
    """


def derived(rate, epochs, seed, table, loop):
    """Do less.

    Args:
      rate: as in `base`; 0.1 in the paper.
      epochs: of `tests_helper.no_such`, or as in `base`.
      seed: see `base`
      table: one of `DANGLING`.
      loop: see `circle`.
    """


def circle(loop, other):
    """Go round.

    Args:
      loop: see `derived`.
      *other: things.
    """


def test_entries_are_read():
    assert written_texts(base) == {
        "rate": "step size, > 0; not checked.",
        "epochs": "two numbers: see the paper.",
        "seed": "two numbers: see the paper.",
    }
    assert written_texts(circle)["other"] == "things."
    assert written_texts(lambda x: x) == {}


def test_references_are_followed():
    texts = argument_texts(derived)
    assert texts["rate"] == "step size, > 0; not checked; 0.1 in the paper"
    assert texts["epochs"] == "of tests_helper.no_such, or two numbers: see the paper"
    assert texts["seed"] == "two numbers: see the paper"
    assert texts["table"] == "one of DANGLING"


def test_two_that_refer_to_each_other_explain_nothing():
    assert "loop" not in argument_texts(derived) and "loop" not in argument_texts(circle)


def test_names_are_found_where_a_reader_would_look(monkeypatch):
    assert argument_texts(FACTORIES["dataset"]["mnist"])["path"].startswith("directory with")
    monkeypatch.setattr(field_help, "NAMESPACES", ())
    assert argument_texts(FACTORIES["dataset"]["mnist"])["path"].startswith("directory with")
    assert "train-images-idx3-ubyte" in argument_texts(FACTORIES["dataset"]["mnist"])["path"]


@pytest.mark.parametrize("section", FACTORIES)
def test_every_argument_has_its_text(section):
    bad = {
        f"{name}.{key}": text
        for name in FACTORIES[section]
        for key in parameters(section, name)
        if len(text := argument_text(section, name, key) or "") < 6 or DANGLING.search(text)
    }
    assert not bad


def test_every_other_field_has_its_text():
    config = default_config()
    fields = [*RUN_FIELDS, *(f"messages.{name}" for name in FIELDS)]
    texts = {field: meaning(field, config) for field in fields} | NAMES | COMPARISON
    assert not {f: t for f, t in texts.items() if len(t) < 6 or DANGLING.search(t)}
    assert {f"compare.{key}" for key in config.compare} | {"learning_rates"} == set(COMPARISON)
    assert {f"{section}.name" for section in FACTORIES} == set(NAMES)
