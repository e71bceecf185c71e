"""Runs of a second, for tests of how they end early and go on."""

import itertools
import json

import pytest

from pflalign_jax.runs import checkpoints, files, resuming, signals
from pflalign_jax.runs.build import build
from pflalign_jax.runs.config import default_config, resolve
from pflalign_jax.runs.loop import RunPlan, train

SECONDS = ("second", "fraction_of_matmul_peak")


def small(**fields):
    config = default_config()
    config.rounds, config.eval_every, config.cohort_size = 6, 2, 4
    config.dataset.num_clients, config.dataset.fraction = 6, 0.15
    config.model.name = "logistic"
    config.algorithm.learning_rate = 3.0
    config.checkpoint_every = 1
    for name, value in fields.items():
        config[name] = value
    return config


BUILT = {}  # programs are compiled once


def built(path, config):
    of = config.copy_and_resolve_references()
    kept = {"rounds": 6, "checkpoint_every": None, "checkpoints_kept": 2}
    resolved = resolve(of)
    of.update(kept)
    on_disk = path if config.client_state_in == "disk" else None
    name = (json.dumps(resolve(of).to_dict()), on_disk)
    if name not in BUILT:
        BUILT[name] = build(config, path / "client_states")
    return BUILT[name]._replace(config=resolved)


def go(path, config, said=None, asked=lambda: 0, dataset=None):
    experiment = built(path, config)
    if dataset is not None:
        experiment = experiment._replace(dataset=dataset)
    files.create(path, go_on=True)
    start = resuming.prepare(path, experiment, [].append if said is None else said.append)
    return train(RunPlan(experiment, path, start, path / "checkpoints", stop=asked))


def stopped_after(rounds):
    """Return a ``stop`` that asks to after so many rounds."""
    turns = itertools.count(1)
    return lambda: 15 if next(turns) == rounds else 0


def interrupted(path, config, rounds=3):
    with pytest.raises(signals.StoppedError, match=f"stopped by SIGTERM after round {rounds}"):
        go(path, config, asked=stopped_after(rounds))
    return path


def measured(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not any(s in k for s in SECONDS)} for r in rows]


def same(path, other):
    assert measured(path) == measured(other)
    assert (path / "clients.csv").read_bytes() == (other / "clients.csv").read_bytes()
    last = [checkpoints.read_about(p / "checkpoints", 6)["leaves"] for p in (path, other)]
    assert last[0] == last[1]  # names, shapes, types and checksums
