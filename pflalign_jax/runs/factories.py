"""The functions that a config can name, and which of their arguments are its fields."""

import importlib
import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pflalign_jax import algorithms, datasets, models
from pflalign_jax.algorithms.averaging import heavy_ball
from pflalign_jax.align import align_transform
from pflalign_jax.federated import participation, proximal
from pflalign_jax.runs.config_checks import ConfigError, nearest
from pflalign_jax.tasks.metrics import Metric, named_metric

FACTORIES: Mapping[str, Mapping[str, Callable]] = {
    "dataset": {name: getattr(datasets, name) for name in datasets.NAMES},
    "model": {name: getattr(models, name) for name in models.NAMES},
    "algorithm": {name: getattr(algorithms, name) for name in algorithms.NAMES},
    "participation": {name: getattr(participation, name) for name in participation.NAMES},
}
"""What each section's ``name`` can be, of this package."""

_OUTSIDE: dict[str, dict[str, Callable]] = {section: {} for section in FACTORIES}
"""What `factory` found in modules outside the package, by its name ``module:function``.

Like ``sys.modules`` it only remembers what was asked for, so that `factories` can list it.
"""

_OUTSIDE_METRICS: set[str] = set()
"""Names ``module:metric`` that `metric` was asked for."""

TRANSFORMS: dict[str, Callable[[float], Any]] = {
    "personal_tx": align_transform,
    "body_tx": align_transform,
    "before": proximal,
    "server_tx": heavy_ball,
}
"""Arguments of algorithms that are transforms, made from the number that a config has for them."""

SUPPLIED = {
    "task",
    "loss",
    "model",
    "num_classes",
    "local_optimizer",
    "local_epochs",
    "batch_size",
    "num_clients",
    "diagnostics",
}
"""Arguments of functions that come from elsewhere in the config, or from the data."""


def factory(section: str, name: str) -> Callable:
    """Return the function that a section's ``name`` means.

    Args:
      section: ``"dataset"``, ``"model"``, ``"algorithm"`` or ``"participation"``.
      name: of one of the package's functions, or ``module:function`` for one outside of it; the
        module is looked for where Python looks, and in the current folder.

    Raises:
      ConfigError: for a name that means nothing, or a module that cannot be imported.
    """
    known = factories(section)
    if name in known:
        return known[name]
    if ":" not in str(name):
        raise ConfigError(
            f"config.{section}.name={name!r} is unknown{nearest(name, known)}, or name your own as "
            "my_module:my_function"
        )
    function = _imported(f"config.{section}.name={name!r}", name)
    _OUTSIDE[section][name] = function
    return function


def metric(name: str) -> Metric:
    """Return the metric that a name in ``config.metrics`` means.

    Args:
      name: as of `pflalign_jax.tasks.metrics.named_metric`, or ``module:metric`` outside of it.

    Raises:
      ConfigError: for a name that means nothing, or a module that cannot be imported.
    """
    try:
        if ":" in name:
            found = _imported(f"config.metrics={name!r}", name, Metric)
            _OUTSIDE_METRICS.add(name)
            return found
        return named_metric(name)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.metrics: {error}") from error


def metrics_outside() -> frozenset[str]:
    """Return the names of metrics outside the package that were asked for so far."""
    return frozenset(_OUTSIDE_METRICS)


def factories(section: str) -> dict[str, Callable]:
    """Return all functions of a section by name, with those outside the package named so far."""
    return {**FACTORIES[section], **_OUTSIDE[section]}


def table_key(name: str) -> str:
    """Return what a function is called in tables of a config and in names of folders.

    ``package.module:function`` is not possible in either.

    >>> table_key("fedavg"), table_key("my_package.methods:ifca")
    ('fedavg', 'my_package_methods_ifca')
    """
    return re.sub(r"[.:/\\]", "_", name)


def parameters(section: str, name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of the function that ``section.name`` names which a config can set."""
    # A dataset's own num_classes is a field: it says what a file has.
    supplied = SUPPLIED if section != "dataset" else {"task"}
    found = dict(inspect.signature(factory(section, name)).parameters)
    if section == "dataset" and "options" in found:
        del found["options"]
        dealt = inspect.signature(datasets.partition_examples).parameters
        found.update((k, p) for k, p in dealt.items() if k != "examples")
    return {k: p for k, p in found.items() if k not in supplied}


def argument_types(section: str, name: str) -> dict[str, Any]:
    """Return the types of the arguments of the function that ``section.name`` names."""
    functions = [datasets.partition_examples] if section == "dataset" else []
    types_of: dict[str, Any] = {}
    for function in [*functions, factory(section, name)]:
        try:
            types_of |= typing.get_type_hints(function)
        except (NameError, TypeError):
            continue  # one outside the package may annotate with names that it does not import
    return types_of


def is_number(name: str, field: str) -> bool:
    """Tell whether an algorithm's argument is a number that decides on no shapes and no steps.

    Whether it is None may decide on them.
    """
    kind = argument_types("algorithm", name).get(field)
    return kind in (float, float | None) or field in TRANSFORMS


def _imported(field: str, name: str, kind: Any = types.FunctionType) -> Any:
    """Return what ``module:name`` holds.

    Args:
      field: what the config says, for errors.
      name: of it.
      kind: type that it must have; of functions, whatever can be called.
    """
    module_name, _, attribute = name.partition(":")
    what = "function" if kind is types.FunctionType else kind.__name__.lower()
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise ConfigError(f"{field} is not allowed; name a {what} as my_module:my_{what}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there hides no installed package
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(f"{field}: {_import_failure(module_name, error)}") from error
    found = getattr(module, attribute, None)
    if not (callable(found) if kind is types.FunctionType else isinstance(found, kind)):
        names = [n for n, value in vars(module).items() if isinstance(value, kind)]
        raise ConfigError(
            f"{field}: {module.__file__} has no {what} {attribute!r}{nearest(attribute, names)}"
        )
    return found


def _import_failure(module_name: str, error: Exception) -> str:
    """Return what to say of a module that cannot be imported."""
    parents = {module_name.rsplit(".", i)[0] for i in range(module_name.count(".") + 1)}
    # A module that this one imports may be missing, too: that is told like any other error in it.
    if isinstance(error, ModuleNotFoundError) and error.name in parents:
        return (
            f"there is no module {error.name!r}; run the command in the folder that holds it "
            f"(now {os.getcwd()}), install it, or add its folder to PYTHONPATH"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" in {last.filename}, line {last.lineno}"
    return f"module {module_name!r} cannot be imported: {type(error).__name__}{where}: {error}"
