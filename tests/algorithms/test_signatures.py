"""Factories take the same arguments in the same order, and say what each of them means."""

import ast
import inspect
import statistics

import pytest
from hand import ADAPTED, FEATURES
from make import ADAPTERS_ONLY, make

from pflalign_jax import algorithms
from pflalign_jax.federated import Algorithm
from pflalign_jax.runs.field_help import argument_texts

FACTORIES = (*algorithms.NAMES, "fedopt")
SHARED_FIRST = ["num_clients", "num_classes", "head"]
OWN_LOSS = {
    *("fedcp", "feddbe", "fedpac", "fedproto", "fedrod", "gpfl", "fedntd", "fedem", "knnper"),
    *("fml", "fedas", "fedgh"),
}
"""Those that build their loss on the model's features or logits."""


def parameters(name):
    return inspect.signature(getattr(algorithms, name)).parameters


def test_all_builders_are_public():
    assert len(algorithms.NAMES) == len(set(algorithms.NAMES)) == 49
    assert set(algorithms.__all__) == set(FACTORIES) | {
        "averaged", "averaging", "partly_fixed", "partly_local", "shared_in_part", "two_models",
    }  # fmt: skip


@pytest.mark.parametrize("name", FACTORIES)
def test_arguments_have_one_order(name):
    names = list(parameters(name))
    assert names[:2] == ["model", "learning_rate"]
    last = ["local_optimizer", "local_epochs", "batch_size"]
    last = last if name in OWN_LOSS else ["loss", *last]
    assert names[-len(last) :] == last
    own = names[2 : -len(last)]
    shared = [n for n in SHARED_FIRST if n in own]
    assert own[: len(shared)] == shared and "loss" not in own


@pytest.mark.parametrize("name", FACTORIES)
def test_arguments_have_one_kind(name):
    """Two may be given by position; all but those that a runner knows have defaults."""
    found = parameters(name)
    assert all(p.kind is p.KEYWORD_ONLY for p in list(found.values())[2:])
    needed = {n for n, p in found.items() if p.default is p.empty}
    assert needed <= {"model", "num_clients", "num_classes", "server_optimizer"}
    if "loss" in found:
        assert found["loss"].default is None
    assert found["local_epochs"].default == 1 and found["batch_size"].default == 10
    assert found["local_optimizer"].default == "sgd"


@pytest.mark.parametrize("name", FACTORIES)
def test_every_argument_is_described(name):
    meanings = argument_texts(getattr(algorithms, name))
    assert set(meanings) == set(parameters(name))
    assert all(len(text) > 10 for text in meanings.values()), meanings


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_the_model_is_enough(name):
    """The loss is the model's cross-entropy, the head its own."""
    model = ADAPTED if name in ADAPTERS_ONLY else FEATURES
    assert isinstance(make(name, model, 0.1, 2, 2), Algorithm)


def lines_of_code(module):
    """Return how many lines a module has without docstrings, comments and blank lines."""
    source = inspect.getsource(module)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    texts = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    of_texts = {line for text in texts for line in range(text.lineno, text.end_lineno + 1)}
    lines = enumerate(map(str.strip, source.splitlines()), 1)
    return sum(line not in of_texts and text[:1] not in ("", "#") for line, text in lines)


def test_an_algorithm_is_short():
    modules = [inspect.getmodule(getattr(algorithms, name)) for name in algorithms.NAMES]
    lengths = [lines_of_code(module) for module in modules]
    assert len(set(modules)) == len(modules)
    assert min(lengths) > 10
    assert statistics.median(lengths) <= 75
