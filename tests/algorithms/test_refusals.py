"""What algorithms refuse: hyperparameters, models and heads, by name."""

import inspect

import pytest
from hand import FEATURES, MODEL, after

from pflalign_jax import algorithms

HEAD = {"head": ("head",)}
HEADED = (
    *("fedrod", "fedproto", "feddbe", "fedpac", "fedcp", "gpfl", "moon", "knnper", "fedphp"),
    *("fedas", "fedgh", "pfedsim"),
)
"""Methods that look at the input of the head."""


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fedprox", {"mu": -1.0}, r"mu=-1\.0"),
        ("fedavgm", {"momentum": 1.0}, r"momentum=1\.0"),
        ("fedadam", {"b2": 2.0}, r"b2=2\.0"),
        ("scaffold", {"num_clients": 2, "learning_rate": 0.0}, r"learning_rate=0\.0"),
        ("scaffold", {"num_clients": 0}, "num_clients=0"),
        ("feddyn", {"num_clients": 2, "alpha": 0.0}, r"alpha=0\.0"),
        ("perfedavg", {"batch_size": 5}, "batch_size=5"),
        ("perfedavg", {"alpha": -1.0}, r"alpha=-1\.0"),
        ("pfedme", {"lam": 200.0}, r"personal_learning_rate=0\.01 .* lam=200\.0"),
        ("pfedme", {"lam": -1.0}, r"pfedme: lam=-1\.0"),
        ("pfedme", {"inner_steps": 0}, "inner_steps=0"),
        ("ditto", {"lam": -1.0}, r"lam=-1\.0"),
        ("apfl", {"alpha": 1.5}, r"alpha=1\.5"),
        ("fedrep", {"head_epochs": 0, **HEAD}, "head_epochs=0"),
        ("fedbabu", {"fine_tune_learning_rate": -1.0, **HEAD}, r"fine_tune_learning_rate=-1\.0"),
        ("fedbabu", {"fine_tune_epochs": 0, **HEAD}, "fine_tune_epochs=0"),
        ("fedala", {"weight_learning_rate": -1.0, **HEAD}, r"weight_learning_rate=-1\.0"),
        ("fedamp", {"num_clients": 2, "sigma": 0.0}, r"sigma=0\.0"),
        ("fedamp", {"num_clients": 2, "lam": -1.0}, r"fedamp: lam=-1\.0"),
        ("fedproto", {"num_classes": 2, "lam": -1.0}, r"lam=-1\.0"),
        ("feddbe", {"kappa": -1.0}, r"kappa=-1\.0"),
        ("fedcp", {"lam": -1.0}, r"lam=-1\.0"),
        ("gpfl", {"num_classes": 2, "mu": -1.0}, r"mu=-1\.0"),
        ("ifca", {"num_clusters": 0}, "num_clusters=0"),
        ("moon", {"tau": 0.0}, r"tau=0\.0"),
        ("fedntd", {"beta": -1.0}, r"beta=-1\.0"),
        ("cfl", {"num_clients": 2, "eps1": -1.0}, r"eps1=-1\.0"),
        ("cfl", {"num_clients": 2, "num_clusters": 0}, "num_clusters=0"),
        ("fesem", {"num_clients": 2, "num_clusters": 0}, "num_clusters=0"),
        ("fedem", {"num_models": 0}, "num_models=0"),
        ("knnper", {"lam": 1.5}, r"lam=1\.5"),
        ("fedfomo", {"num_clients": 2, "held_out": 1}, "held_out=1"),
        ("apple", {"num_clients": 2, "pull_rounds": 0}, "pull_rounds=0"),
        ("apple", {"num_clients": 2, "share_learning_rate": -1.0}, r"share_learning_rate=-1\.0"),
        ("fedcac", {"num_clients": 2, "tau": 1.5}, r"tau=1\.5"),
        ("fml", {"alpha": 1.5}, r"alpha=1\.5"),
        ("fedphp", {"mu": 1.5}, r"mu=1\.5"),
        ("fedas", {"num_classes": 2, "align_learning_rate": -1.0}, r"align_learning_rate=-1\.0"),
        ("fedgh", {"num_classes": 2, "server_learning_rate": -1.0}, r"server_learning_rate=-1\.0"),
        ("pfedhn", {"num_clients": 2, "hidden_layers": 0}, "hidden_layers=0"),
        ("pfedsim", {"num_clients": 2, "warm_up_rounds": -1}, "warm_up_rounds=-1"),
        ("pfedbayes", {"zeta": -1.0}, r"zeta=-1\.0"),
        ("superfed", {"nu": -1.0}, r"nu=-1\.0"),
    ],
)
def test_bad_hyperparameters_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(algorithms, name)(FEATURES, **arguments)


@pytest.mark.parametrize("name", HEADED)
def test_a_model_without_one_head_is_refused(name):
    more = {"num_classes": 2, "num_clients": 2, "head": ()}
    takes = inspect.signature(getattr(algorithms, name)).parameters
    with pytest.raises(ValueError, match=rf"{name} needs a model with one dense head.*head=\(\)"):
        getattr(algorithms, name)(MODEL, **{k: v for k, v in more.items() if k in takes})


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbabu", "lgfedavg", "fedala"])
def test_an_unknown_head_is_named(name):
    with pytest.raises(ValueError, match=r"'heat'; the parameters are \['body', 'head'\]"):
        after(getattr(algorithms, name)(MODEL, head=("heat",)), 1)


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbabu", "lgfedavg", "fedala"])
def test_a_head_is_asked_for_by_name(name):
    """The model's own is the default; a model without one is refused, not taken to have none."""
    with pytest.raises(ValueError, match=rf"{name}: head=None .* a model that has no head"):
        getattr(algorithms, name)(MODEL)
    for head in (None, ("head",), ()):
        getattr(algorithms, name)(FEATURES, head=head)
