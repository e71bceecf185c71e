"""From a config to a finished run: build, train, evaluate, write."""

import importlib.metadata
import inspect
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import incidents, messages
from experiments import workdir as files
from experiments.config import FACTORIES, ConfigError, resolve
from experiments.incidents import DivergedError
from experiments.machine import matmul_peak, step_flops
from pflalign_jax import datasets, diagnostics
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import ClientScores, Federation, Participation, federate, summarise
from pflalign_jax.models import Model, cross_entropy, with_compute_dtype

__all__ = ["HEADLINE", "DivergedError", "Experiment", "Outcome", "build", "train"]

HEADLINE = "accuracy/{split}/personal/adapted/mean"
"""The score that stands on the progress bar and chooses the best round (on validation)."""


class Experiment(NamedTuple):
    """What a config describes, ready to run."""

    config: ConfigDict
    dataset: FederatedDataset
    model: Model
    federation: Federation
    participation: Participation


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
      summary: as in ``summary.json``.
      rows: as in ``metrics.jsonl``.
      scores: `ClientScores` by name, of the last round.
    """

    summary: dict[str, Any]
    rows: list[dict[str, float]]
    scores: dict[str, ClientScores]


def build(
    config: ConfigDict,
    state_dir: pathlib.Path | None = None,
    dataset: FederatedDataset | None = None,
) -> Experiment:
    """Resolve a config and build its dataset, model, algorithm and federation.

    Args:
      config: the experiment.
      state_dir: where to keep client states on disk, if they are to be there.
      dataset: the config's dataset, if it has been built before.

    Raises:
      ConfigError, DatasetError: naming the field or the file, its value and what to do.
    """
    config = resolve(config)
    dataset = build_dataset(config) if dataset is None else dataset
    model = _call(config, "model", num_classes=dataset.num_classes)
    if config.compute_dtype != "float32":
        model = with_compute_dtype(model, config.compute_dtype)
    algorithm = _call(
        config,
        "algorithm",
        loss=cross_entropy(model),
        model=model,
        num_classes=dataset.num_classes,
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        participation=(config.cohort_size or dataset.num_clients) / dataset.num_clients,
        num_clients=dataset.num_clients,
        head=model.head,
        diagnostics=config.diagnostics,
    )
    participation = _call(config, "participation")
    messages.privacy(config, participation, dataset.num_clients, rounds=1)  # can it be accounted?
    algorithm, trained = messages.wrap(algorithm, config, dataset)
    try:
        federation = federate(
            algorithm,
            model,
            trained,
            cohort_size=config.cohort_size,
            participation=participation,
            client_chunk=config.client_chunk,
            client_state_in=config.client_state_in,
            state_dir=state_dir,
            new_client_steps=config.new_client_steps,
            diagnostics=config.diagnostics,
        )
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    return Experiment(config, dataset, model, federation, participation)


def build_dataset(config: ConfigDict) -> FederatedDataset:
    """Return the dataset of a resolved config.

    Raises:
      DatasetError: naming the file or argument, its value and what to do.
    """
    return _call(config, "dataset")


def _call(config, section, **supplied):
    """Call the function that a section of a resolved config names.

    ``supplied`` are further arguments, for those that take them and where the config has none.
    """
    fields = dict(config[section])
    factory = FACTORIES[section][fields.pop("name")]
    takes = inspect.signature(factory).parameters
    supplied = {name: value for name, value in supplied.items() if name in takes}
    try:
        return factory(**{**supplied, **fields})
    except datasets.DatasetError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.{section}: {error}") from error


def train(
    experiment: Experiment,
    workdir: pathlib.Path | None,
    on_round: Callable[[int, dict[str, float] | None], None] = lambda done, row: None,
) -> Outcome:
    """Run all rounds and write the run's files to ``workdir`` as they come.

    Args:
      experiment: from `build`.
      workdir: from `experiments.workdir.create`; None writes nothing, as all processes but the
        first do.
      on_round: called after every round with the number done and, if it was evaluated, its row.

    Raises:
      DivergedError: when a round's training loss is not finite, or one client's with
        ``config.on_nonfinite="raise"``.
    """
    config, dataset, model, federation, participation = experiment
    if workdir is not None:
        files.write_json(workdir / "config.json", config.to_dict())
        datasets.save_partition(workdir / "partition.npz", dataset)
    everyone = federation.everyone
    state = federation.init(jax.random.key(config.seed))
    sizes = dataset.splits["train"].sizes
    peak, flops = matmul_peak(), step_flops(model, dataset, config.batch_size)
    rows, scores, steps, examples, training_seconds = [], {}, 0, 0, 0.0
    tally = incidents.Tally()
    begin = time.perf_counter()
    for done in range(1, config.rounds + 1):
        evaluated = done % config.eval_every == 0 or done == config.rounds
        start = time.perf_counter()
        state, result = federation.run_round(state, score=evaluated and everyone)
        loss = incidents.check_round(done, result, config, dataset, workdir)
        training_seconds += time.perf_counter() - start
        tally = incidents.count(tally, result)
        steps += int(result.work.useful)
        examples += config.local_epochs * int(sizes[result.cohort].sum())
        if config.diagnostics and workdir is not None:
            seen = {"round": done, **diagnostics.describe(result.metrics)}
            seen = incidents.finite_or_none(seen)
            files.append_line(workdir / "diagnostics.jsonl", seen)
        row = None
        if evaluated:
            start = time.perf_counter()
            scores = {**federation.evaluate(state, adapt=not everyone), **result.adapted}
            new_scores = {} if dataset.new_clients is None else federation.evaluate_new(state)
            work = result.work
            row = {
                "round": done,
                "seconds": training_seconds / tally.rounds,
                "seconds_evaluation": time.perf_counter() - start,
                "seconds_total": time.perf_counter() - begin,
                "client_steps_per_second": steps / training_seconds,
                "examples_per_second": examples / training_seconds,
                "fraction_of_matmul_peak": steps * flops / training_seconds / peak,
                "executed_over_useful_steps": incidents.ratio(work.executed, work.useful),
                "slowest_over_mean_device": federation.mesh.size
                * incidents.ratio(work.slowest, work.all_devices),
                **incidents.columns(tally, federation),
                **messages.privacy(config, participation, dataset.num_clients, done),
                "loss/train/mean": loss,
                **summarise({**scores, **new_scores}),
            }
            row = incidents.finite_or_none(row)
            if workdir is not None:
                files.append_line(workdir / "metrics.jsonl", row)
                files.append_clients(workdir, done, dataset.client_names, scores)
                if dataset.new_clients is not None:
                    names = dataset.new_clients.client_names
                    files.append_clients(workdir, done, names, new_scores)
            rows, tally, steps = [*rows, row], incidents.Tally(), 0
            examples, training_seconds = 0, 0.0
        on_round(done, row)
    summary = summary_of(experiment, rows)
    if workdir is not None:
        files.write_json(workdir / "summary.json", summary)
    return Outcome(summary, rows, scores)


def summary_of(experiment: Experiment, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return what ``summary.json`` holds.

    ``best_validation`` is the evaluated round with the highest validation headline (the earliest
    of equals), never chosen on test data; None without a validation split.
    """
    config, dataset, _, federation, participation = experiment
    chosen_by = HEADLINE.format(split="validation")
    best = max(rows, key=lambda row: row[chosen_by]) if chosen_by in rows[0] else None
    device = federation.mesh.devices.flat[0]
    return {
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "dataset": {
            **datasets.describe(dataset),
            "partition_hash": datasets.partition_hash(dataset),
        },
        "cohort_size": federation.cohort_size,
        "client_chunk": federation.client_chunk,
        "client_state_in": federation.client_state_in,
        "chosen_by": chosen_by if best else None,
        "best_validation": best,
        "last": rows[-1],
        "privacy": incidents.finite_or_none(
            messages.privacy(config, participation, dataset.num_clients, rows[-1]["round"])
        ),
        "device": {"kind": device.device_kind, "platform": device.platform,
                   "count": federation.mesh.size},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "numpy")
        },
    }  # fmt: skip
