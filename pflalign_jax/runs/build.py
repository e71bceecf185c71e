"""From a config to its parts, and to what runs: dataset, model, algorithm, federation."""

import contextlib
import inspect
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import (
    Algorithm,
    Federation,
    Participation,
    federate,
    inject_hyperparams,
)
from pflalign_jax.models import Model, with_compute_dtype
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.config_checks import ConfigError
from pflalign_jax.runs.effective import effective_config
from pflalign_jax.runs.factories import TRANSFORMS, factory, metric
from pflalign_jax.runs.generation import generation_of
from pflalign_jax.runs.read_types import with_tuples
from pflalign_jax.runs.step_sizes import adapt_learning_rates, in_state, round_schedules
from pflalign_jax.runs.tokenisers import check_tokenisers
from pflalign_jax.tasks import TASKS, Moments, Task, infer_task, regression


class Experiment(NamedTuple):
    """What a config describes, ready to run.

    Attributes:
      config: resolved, with the value that every None stands for.
      dataset: as its owners have it; attackers among clients may be given other labels.
      model: that is trained.
      federation: the compiled rounds.
      participation: who is invited to a round, and who answers.
    """

    config: ConfigDict
    dataset: FederatedDataset
    model: Model
    federation: Federation
    participation: Participation


def build(
    config: ConfigDict,
    state_dir: pathlib.Path | None = None,
    dataset: FederatedDataset | None = None,
    tuned: Sequence[str] = (),
) -> Experiment:
    """Resolve a config and build its dataset, model, algorithm and federation.

    Args:
      config: the experiment.
      state_dir: where to keep client states on disk, if they are to be there.
      dataset: the config's dataset, if it has been built before.
      tuned: fields of ``config.algorithm``, numbers, that programs take for data: the experiment
        with another config that differs in these and the seed needs no other programs.

    Raises:
      ConfigError, DatasetError: naming the field or the file, its value and what to do.
    """
    config = resolve(config)
    dataset = build_dataset(config) if dataset is None else dataset
    _refuse_unscored(dataset)
    task = build_task(config, dataset)
    with errors_of("model"):
        model = build_model(config, task.num_outputs(dataset))
    with errors_of("participation"):
        participation = build_participation(config)
    # Before anything is compiled: a run must not end at its first evaluation.
    messages.check_accountable(config, participation, dataset.num_clients)
    algorithm, trained = build_with_messages(config, model, dataset, task)
    _check_adaptation(config, algorithm, model, dataset, task)
    algorithm = with_hyperparams(
        algorithm,
        config,
        # Messages go around the algorithm with other values as well.
        lambda **values: build_with_messages(config, model, dataset, task, values)[0],
        tuned,
    )
    try:
        federation = federate(
            algorithm,
            model,
            trained,
            task=task,
            cohort_size=config.cohort_size,
            participation=participation,
            client_chunk=config.client_chunk,
            client_state_in=config.client_state_in,
            state_dir=state_dir,
            new_client_steps=config.new_client_steps,
            drop_last=config.drop_last,
            diagnostics=config.diagnostics,
        )
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    generation_of(config, dataset, federation)  # before the first round: its errors
    # What is written says what every None stood for.
    config = effective_config(config, dataset, model, federation)
    return Experiment(config, dataset, model, federation, participation)


def _refuse_unscored(dataset: FederatedDataset) -> None:
    """Raise an error if no client has an example to score: a run is for its scores."""
    if not any(dataset.splits[split].sizes.any() for split in ("validation", "test")):
        raise ConfigError(
            f"config.dataset: {dataset.name} has neither validation nor test examples, so that "
            "nothing can be scored; raise validation_fraction or test_fraction"
        )


def _check_adaptation(
    config: ConfigDict, algorithm: Algorithm, model: Model, dataset: FederatedDataset, task: Task
) -> None:
    """Refuse step sizes of the last adaptation that the algorithm or the data do not allow."""
    rates, name = adapt_learning_rates(config), algorithm.adapts_with
    if len(rates) > 1 and not len(dataset.splits["validation"].indices):
        raise ConfigError(
            f"config.adapt_learning_rate={rates} are chosen from on validation data, of which "
            f"{dataset.name} has none; set config.dataset.validation_fraction or validation_count, "
            "or give one step size"
        )
    if rates and config.algorithm.get(name) is None:
        raise ConfigError(
            f"config.adapt_learning_rate={config.adapt_learning_rate} goes in place of the "
            f"argument {name}, which algorithm {config.algorithm.name!r} does not take; leave it "
            "out"
        )
    for rate in rates:
        try:
            build_with_messages(config, model, dataset, task, {name: rate})
        except ConfigError as error:
            raise ConfigError(f"config.adapt_learning_rate={rate}: {error}") from error


def check_experiment(config: ConfigDict, dataset: FederatedDataset) -> Experiment:
    """Refuse a config that does not fit its model or its data; return what it describes.

    Raises:
      ConfigError: as `build`.
    """
    return build(config, pathlib.Path("unused"), dataset)


def build_with_messages(
    config: ConfigDict,
    model: Model,
    dataset: FederatedDataset,
    task: Task,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Algorithm, FederatedDataset]:
    """Return the algorithm of a resolved config and the data it is to see.

    Args:
      config: resolved.
      model, dataset, task: of the experiment.
      values: hyperparameters to use instead of the config's.

    Raises:
      ConfigError: naming the value that is not possible.
    """
    with errors_of("algorithm"):
        algorithm = build_algorithm(
            config, model, task, task.num_outputs(dataset), dataset.num_clients, values
        )
    return messages.wrap(algorithm, config, dataset)


def with_hyperparams(
    algorithm: Algorithm,
    config: ConfigDict,
    make: Callable[..., Algorithm],
    tuned: Sequence[str] = (),
) -> Algorithm:
    """Return an algorithm with those hyperparameters in its state that change during a run.

    Args:
      algorithm: of a resolved config.
      config: resolved.
      make: from values of hyperparameters to the algorithm with them.
      tuned: further hyperparameters for its state.
    """
    names = dict.fromkeys((*tuned, *in_state(config, algorithm.adapts_with)))
    if not names:
        return algorithm
    values = {name: config.algorithm[name] for name in names}
    return inject_hyperparams(make, schedules=round_schedules(config), **values)


def check_algorithm(
    config: ConfigDict, model: Model, dataset: FederatedDataset, task: Task
) -> None:
    """Refuse values that the algorithm of a resolved config does not allow.

    Raises:
      ConfigError: naming the value.
    """
    build_with_messages(config, model, dataset, task)


def build_dataset(config: Mapping[str, Any]) -> FederatedDataset:
    """Return the dataset of a resolved config.

    Raises:
      DatasetError: naming the file or argument, its value and what to do.
      ConfigError: for texts that are encoded in another way than the model reads them.
    """
    fields = config["dataset"]
    with errors_of("model"):
        check_tokenisers(fields, config["model"])
    with errors_of("dataset"):
        # Files of numbers can be read for several tasks; most datasets have but one.
        return call(factory("dataset", fields["name"]), fields, task=config["task"])


def build_task(config: Mapping[str, Any], dataset: FederatedDataset) -> Task:
    """Return the task of a resolved config: as it says, or else as the data say.

    Raises:
      ConfigError: for a headline that the task does not have.
      DatasetError: for ``y`` that leaves in doubt what the task is, or does not fit it.
    """
    task = infer_task(dataset) if config["task"] is None else TASKS[config["task"]]()
    if config["standardise_targets"]:
        if task.name != "regression":
            raise ConfigError(
                f"config.standardise_targets=True does nothing with task {task.name!r}; it is for "
                "'regression'"
            )
        task = regression(standardise=dataset)
    task.check(dataset)
    return _with_metrics(task, config)


def rebuild_task(config: Mapping[str, Any], name: str, moments: Moments | None) -> Task:
    """Return the task of a run that was, without its data.

    Args:
      config: of the run.
      name: of the task.
      moments: of standardised targets; None: they were not.

    Raises:
      ConfigError: for an own metric that cannot be imported.
    """
    task = TASKS[name]() if moments is None else regression(standardise=moments)
    return _with_metrics(task, config)


def _with_metrics(task: Task, config: Mapping[str, Any]) -> Task:
    """Return a task with the metrics and the headline of a config."""
    for name in config.get("metrics", ()):
        if task.name == "regression" and ":" not in name:
            raise ConfigError(
                f"config.metrics: metric {name!r} is of labels and does not go with task "
                f"'regression', which has {[m.name for m in task.metrics]}"
            )
    try:
        task = task.with_metrics(*map(metric, config.get("metrics", ())))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.metrics: {error}") from error
    headline = config.get("headline")
    try:
        return task if headline is None else task.with_headline(headline)
    except ValueError as error:
        raise ConfigError(f"config.headline={headline!r}: {error}") from error


@contextlib.contextmanager
def errors_of(section: str) -> Iterator[None]:
    """Name the section of a config whose values a function refuses."""
    try:
        yield
    except (datasets.DatasetError, ConfigError):
        raise
    except ValueError as error:
        raise ConfigError(f"config.{section}: {error}") from error


def call(function: Callable, fields: Mapping[str, Any], **supplied: Any) -> Any:
    """Call a function with the fields of a config's section but its name; lists become tuples.

    ``supplied`` are further arguments, for those that take them and where the config has none.
    """
    # The name chose the function; everything else is an argument.
    given = {k: with_tuples(v) for k, v in fields.items() if k != "name"}
    takes = inspect.signature(function).parameters
    return function(**{k: v for k, v in supplied.items() if k in takes} | given)


def build_model(config: Mapping[str, Any], num_classes: int) -> Model:
    """Return the model of a resolved config.

    Raises:
      ValueError: for arguments that the model refuses.
    """
    fields = config["model"]
    model = call(factory("model", fields["name"]), fields, num_classes=num_classes)
    dtype = config["compute_dtype"]
    return model if dtype == "float32" else with_compute_dtype(model, dtype)


def build_participation(config: Mapping[str, Any]) -> Participation:
    """Return who is invited to a round of a resolved config.

    Raises:
      ValueError: for arguments that are refused.
    """
    fields = config["participation"]
    return call(factory("participation", fields["name"]), fields)


def build_algorithm(
    config: Mapping[str, Any],
    model: Model,
    task: Task,
    num_outputs: int,
    num_clients: int,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Algorithm:
    """Return the algorithm of a resolved config, with ``values`` of hyperparameters instead of its.

    Args:
      config: resolved.
      model: that it trains.
      task: whose loss it trains with.
      num_outputs: of the model.
      num_clients: K.
      values: hyperparameters to use instead of the config's.

    Raises:
      ValueError: for arguments that the algorithm refuses.
    """
    # The algorithm's own fields, and among them those that stand for transforms of gradients.
    fields = {**config["algorithm"], **values}
    for name in TRANSFORMS.keys() & fields.keys():
        if fields[name] is not None:
            try:
                fields[name] = TRANSFORMS[name](fields[name])
            except ValueError as error:
                raise ValueError(f"{name}={fields[name]!r}: {error}") from error
    # Every algorithm's own default is the loss of a classification.
    of_classes = task.name in ("classification", "next_token")
    function = factory("algorithm", fields["name"])
    takes = inspect.signature(function).parameters
    optimizer = config.get("local_optimizer", "sgd")  # runs of earlier versions have none
    if optimizer != "sgd" and "local_optimizer" not in takes:
        raise ConfigError(
            f"config.local_optimizer={optimizer!r} does not go with algorithm {fields['name']!r}, "
            "which takes no argument local_optimizer"
        )
    algorithm = call(
        function,
        fields,
        model=model,
        loss=None if of_classes else task.loss(model),
        num_classes=num_outputs,
        local_optimizer=optimizer,
        local_epochs=config["local_epochs"],
        batch_size=config["batch_size"],
        num_clients=num_clients,
        diagnostics=config["diagnostics"],
    )
    if not isinstance(algorithm, Algorithm):  # as of a function outside the package
        raise ConfigError(
            f"config.algorithm.name={fields['name']!r} returned {type(algorithm).__name__}; it "
            "must return a pflalign_jax.Algorithm"
        )
    if not (of_classes or "loss" in takes or algorithm.classes_only):
        raise ConfigError(
            f"config.algorithm.name={fields['name']!r} takes no argument loss and would train a "
            f"classification; task {task.name!r} needs one that does"
        )
    return algorithm
