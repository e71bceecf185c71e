"""A run's rounds: train, evaluate, write."""

import contextlib
import importlib.metadata
import pathlib
import time
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from pflalign_jax import datasets
from pflalign_jax.federated import ClientScores, FederationState, summarise
from pflalign_jax.federated.inject_hyperparams import values_of
from pflalign_jax.runs import files, metrics
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.checkpointing import KEEPS_NOTHING, keep_checkpoints, together
from pflalign_jax.runs.diagnostics_log import keep_diary
from pflalign_jax.runs.hardware import matmul_peak, room_on_devices, step_flops
from pflalign_jax.runs.metrics import HEADLINE
from pflalign_jax.runs.round_checks import DivergedError, check_round
from pflalign_jax.runs.signals import StoppedError
from pflalign_jax.runs.vmapped_runs import Done, Wanted, drive


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


class Start(NamedTuple):
    """Where a run begins, or goes on.

    Attributes:
      state: of the federation; None for a new run.
      rows: those of ``metrics.jsonl`` so far.
      tally: what was counted since the last of them, and the seconds that the run has taken.
    """

    state: FederationState | None = None
    rows: tuple[dict[str, float], ...] = ()
    tally: Mapping[str, float] = MappingProxyType({})


def train(
    experiment: Experiment,
    workdir: pathlib.Path | None,
    on_round: Callable[[int, dict[str, float] | None], None] = lambda done, row: None,
    start: Start | None = None,
    checkpoints: pathlib.Path | None = None,
    stop: Callable[[], int] = lambda: 0,
    save_last: bool = True,
) -> Outcome:
    """Run all rounds and write the run's files to ``workdir`` as they come.

    Arguments and errors are those of `rounds`.
    """
    run = rounds(experiment, workdir, on_round, start, checkpoints, stop, save_last)
    (outcome,) = drive([run], experiment.federation)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def rounds(
    experiment: Experiment,
    workdir: pathlib.Path | None,
    on_round: Callable[[int, dict[str, float] | None], None] = lambda done, row: None,
    start: Start | None = None,
    checkpoints: pathlib.Path | None = None,
    stop: Callable[[], int] = lambda: 0,
    save_last: bool = True,
) -> Generator[Wanted, Done, Outcome]:
    """Yield a state for every round that is to be run, and do everything else of a run.

    What is yielded is ``(state, whether to score the cohort's local models)``, what is sent back
    ``(next state, RoundResult, seconds)``.

    Args:
      experiment: from `build`.
      workdir: from `pflalign_jax.runs.resuming.prepare`; None writes nothing, as all processes
        but the first do.
      on_round: called after every round with the number done and, if it was evaluated, its row.
      start: from `pflalign_jax.runs.resuming.prepare`; None: a new run.
      checkpoints: directory of the run's checkpoints, the same in all processes; None: without.
      stop: the signal to stop for, 0 as long as there is none; asked after every round.
      save_last: whether the last round's state is saved, too.

    Raises:
      DivergedError: when a round's training loss is not finite, or one client's with
        ``config.on_nonfinite="raise"``; after a checkpoint.
      MemoryExhaustedError: when a device has no room.
      StoppedError: after a checkpoint, when ``stop`` says so.
      WorkdirError, CheckpointError, StoreError: for what cannot be written.
    """
    config, federation, keeper = experiment.config, experiment.federation, KEEPS_NOTHING
    if start is None:
        start = Start()
        if workdir is not None:
            files.describe_run(workdir, config, experiment.dataset)
    if checkpoints is not None and config.checkpoint_every != 0:
        chosen_by = HEADLINE.format(split="validation")
        known = [row[chosen_by] for row in start.rows if row.get(chosen_by) is not None]
        keeper = keep_checkpoints(
            checkpoints,
            federation,
            config.checkpoint_every,
            config.checkpoints_kept,
            max(known, default=None),
        )
    diary = keep_diary(workdir if config.diagnostics else None)
    with contextlib.closing(keeper), contextlib.closing(diary):
        run = _rounds(experiment, workdir, on_round, start, keeper, diary, stop, save_last)
        return (yield from run)


def _rounds(experiment, workdir, on_round, start, keeper, diary, stop, save_last):
    config, dataset, model, federation, participation = experiment
    everyone = federation.everyone
    state = start.state
    if state is None:
        values = {name: config.algorithm[name] for name in values_of(federation.shapes[0])}
        state = federation.init(jax.random.key(config.seed), **values)
    sizes = dataset.splits["train"].sizes
    peak, flops = matmul_peak(), step_flops(model, dataset, config.batch_size)
    rows, scores, tally = list(start.rows), {}, {**NOTHING, **start.tally}
    chosen_by, first = HEADLINE.format(split="validation"), int(state.round) + 1
    begin = time.perf_counter() - tally["seconds_total"]

    def about():
        diary.write()
        seconds = {"seconds_total": time.perf_counter() - begin}
        return {
            "files": {} if workdir is None else files.sizes(workdir),
            "tally": tally | seconds,
            "processes": jax.process_count(),
        }

    for done in range(first, config.rounds + 1):
        evaluated = done % config.eval_every == 0 or done == config.rounds
        state, result, seconds = yield state, evaluated and everyone
        try:
            loss = check_round(done, result, config, dataset, workdir)
        except DivergedError:
            keeper.after_round(state, None, about, True)
            raise
        more = {
            "rounds": 1,
            "steps": int(result.work.useful),
            "examples": config.local_epochs * int(sizes[result.cohort].sum()),
            "seconds": seconds,
            **metrics.count(result),
        }
        tally = {name: total + more.get(name, 0) for name, total in tally.items()}
        diary.add(done, result.metrics)
        row = None
        if evaluated:
            clock = time.perf_counter()
            with room_on_devices(federation.client_chunk):
                scores = {**federation.evaluate(state, adapt=not everyone), **result.adapted}
                new = {} if dataset.new_clients is None else federation.evaluate_new(state)
            seconds, steps, work = tally["seconds"], tally["steps"], result.work
            row = {
                "round": done,
                "seconds": seconds / tally["rounds"],
                "seconds_evaluation": time.perf_counter() - clock,
                "seconds_total": time.perf_counter() - begin,
                "client_steps_per_second": steps / seconds,
                "examples_per_second": tally["examples"] / seconds,
                "fraction_of_matmul_peak": steps * flops / seconds / peak,
                "executed_over_useful_steps": metrics.ratio(work.executed, work.useful),
                "slowest_over_mean_device": federation.mesh.size
                * metrics.ratio(work.slowest, work.all_devices),
                **metrics.columns(tally, federation),
                **messages.privacy(config, participation, dataset.num_clients, done),
                "loss/train/mean": loss,
                **summarise({**scores, **new}),
            }
            row = metrics.finite_or_none(row)
            if workdir is not None:
                files.append_lines(workdir / "metrics.jsonl", [row])
                files.append_clients(workdir, done, dataset.client_names, scores)
                if dataset.new_clients is not None:
                    files.append_clients(workdir, done, dataset.new_clients.client_names, new)
            rows, tally = [*rows, row], NOTHING
        on_round(done, row)
        (signum,) = together(stop())
        last = done == config.rounds and save_last
        keeper.after_round(state, row and row.get(chosen_by), about, last or bool(signum))
        if signum and done < config.rounds:
            raise StoppedError(signum, done)
    keeper.wait()
    if not scores and workdir is not None:
        scores = files.read_clients(workdir, config.rounds, dataset.client_names)
    summary = summary_of(experiment, rows)
    if workdir is not None:
        files.write_json(workdir / "summary.json", summary)
    return Outcome(summary, rows, scores)


NOTHING = {
    **{"rounds": 0, "steps": 0, "examples": 0, "seconds": 0.0, "seconds_total": 0.0},
    **dict.fromkeys(metrics.COUNTED, 0),
}
"""What is counted between two rows of metrics, and all seconds before this process."""


def summary_of(experiment: Experiment, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return what ``summary.json`` holds.

    ``best_validation`` is the evaluated round with the highest validation headline (the earliest
    of equals), never chosen on test data; None without a validation split.
    """
    config, dataset, _, federation, participation = experiment
    chosen_by = HEADLINE.format(split="validation")
    known = [row for row in rows if row.get(chosen_by) is not None]
    best = max(known, key=lambda row: row[chosen_by]) if known else None
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
        "privacy": metrics.finite_or_none(
            messages.privacy(config, participation, dataset.num_clients, int(rows[-1]["round"]))
        ),
        "device": {"kind": device.device_kind, "platform": device.platform,
                   "count": federation.mesh.size},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "numpy")
        },
    }  # fmt: skip
