"""The trials of a comparison: runs in directories of their own, seeds as one program."""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import FederationState
from pflalign_jax.federated.client_states import choose_place
from pflalign_jax.federated.message_size import num_bytes
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.build import Experiment, build, check_algorithm
from pflalign_jax.runs.checkpoints import load_checkpoint
from pflalign_jax.runs.effective import effective_config
from pflalign_jax.runs.files import TrialName
from pflalign_jax.runs.hardware import release_memory
from pflalign_jax.runs.loading import choose_round
from pflalign_jax.runs.loop import RunPlan
from pflalign_jax.runs.metrics import Row
from pflalign_jax.runs.resuming import differences, is_unfinished, prepare, refuse_other_data
from pflalign_jax.runs.round_checks import DivergedError
from pflalign_jax.runs.signals import StoppedError
from pflalign_jax.runs.step_sizes import in_state
from pflalign_jax.runs.vmapped_runs import train_together


class Trial(NamedTuple):
    """One run of a comparison.

    Attributes:
      method: its name in the table: an algorithm, or one of ``config.compare.variants``.
      learning_rate: step size.
      own: value of the method's own hyperparameter; None for its default.
      seed: of the run.
      path: its directory.
      merit: validation headline of the last round, such that more is better (`Headline.merit`);
        -inf if training diverged.
    """

    method: str
    learning_rate: float
    own: float | None
    seed: int
    path: pathlib.Path
    merit: float


class Setting(NamedTuple):
    """What the trials of a method have in common that differ in their seeds.

    Attributes:
      method: its name in the table.
      plan: its config, but for what follows.
      learning_rate: step size.
      field, own: the method's own hyperparameter and its value; None: its default.
      rounds: where a search ends before the plan does; None: the plan's.
    """

    method: str
    plan: ConfigDict
    learning_rate: float
    field: str | None = None
    own: float | None = None
    rounds: int | None = None

    def __str__(self) -> str:
        own = "" if self.own is None else f", {self.field} {self.own:g}"
        rounds = "" if self.rounds is None else f", until round {self.rounds}"
        return f"{self.method}, step size {self.learning_rate:g}{own}{rounds}"

    def config(self, seed: int) -> ConfigDict:
        """Return the config of one trial."""
        plan = self.plan.copy_and_resolve_references()
        # The type of a copy's field is that of its value: 0.1 cannot follow 1.
        with plan.unlocked(), plan.ignore_type():
            plan.algorithm.learning_rate, plan.seed = self.learning_rate, seed
            if self.own is not None:
                plan.algorithm[self.field] = self.own
            if self.rounds is not None:
                plan.rounds = self.rounds
        return plan

    def name(self, seed: int) -> TrialName:
        """Return what tells one trial from the others."""
        return TrialName(self.method, self.learning_rate, self.field, self.own, seed)

    def path(self, root: pathlib.Path, seed: int) -> pathlib.Path:
        """Return the directory of one trial."""
        place = files.TRIALS if self.rounds is None else files.SEARCH
        return root / place / self.name(seed).folder()


class OwnGrid(NamedTuple):
    """Values of a method's own hyperparameter that are tried after the step size.

    Attributes:
      field: its name; None: the method has none, or it is fixed.
      default: its value in the search of the step size; may be None, too.
      values: the others.
    """

    field: str | None = None
    default: float | None = None
    values: Sequence[float] = ()


class TrialContext(NamedTuple):
    """What all trials of a comparison share.

    Attributes:
      root: the comparison's directory.
      dataset: theirs.
      together: whether seeds that are equally far run as one vmapped program; see `as_one`.
      say: told where trials go on.
      stop: the signal to stop for, 0 as long as there is none.
      on_round: called after every round of every trial, as in `pflalign_jax.runs.run`.
      keep: what becomes of the states of trials that have ended, with that of the last round:
        "none" stay; "all" stay, also when a later command would delete them; of "candidates" those
        that `keep_best` is not given, or does not choose, are deleted by it.
    """

    root: pathlib.Path
    dataset: FederatedDataset
    together: bool | None = None
    say: Callable[[str], None] = lambda text: None
    stop: Callable[[], int] = lambda: 0
    on_round: Callable[[int, Row | None], None] = lambda done, row: None
    keep: Literal["none", "candidates", "all"] = "none"


def run_trials(
    setting: Setting, seeds: Sequence[int], context: TrialContext, built: dict[str, Experiment]
) -> list[Trial]:
    """Run the trials of a setting or go on with them, unless their directories say they were run.

    Args:
      setting: of all of them.
      seeds: one for each.
      context: what they share with those of other settings.
      built: what trials before these have compiled, and these add; see `_build`.

    Raises:
      WorkdirError: if a trial was run with another config or on other data.
      StoppedError: after checkpoints of all, when ``stop`` says so.
    """
    paths = [setting.path(context.root, seed) for seed in seeds]
    groups: dict[int, list[RunPlan]] = {}  # the rounds done of trials that still have some to do
    for seed, path in zip(seeds, paths, strict=True):
        if _is_done(path, setting.config(seed), context.dataset):
            if not files.has_trial(path):  # an earlier version wrote none
                files.write_trial(path, setting.name(seed))
            _let_go(path, context)  # a kill came between its end and this
            continue
        try:
            plan = _begin(setting, seed, path, context, built)
        except DivergedError:  # a kill came between its last checkpoint and this
            files.write_diverged(path)
            _let_go(path, context)
            continue
        state = plan.start.state
        groups.setdefault(0 if state is None else int(state.round), []).append(plan)
        del plan, state  # only its group holds it
    for group in groups.values():
        if len(group) > 1 and as_one([plan.experiment for plan in group], context.together):
            _run(group, context)
            continue
        while group:  # what a run holds, also of its disk, is let go before the next one
            _run([group.pop(0)], context)
    return [
        Trial(setting.method, setting.learning_rate, setting.own, seed, path, _merit(path))
        for seed, path in zip(seeds, paths, strict=True)
    ]


def _begin(
    setting: Setting,
    seed: int,
    path: pathlib.Path,
    context: TrialContext,
    built: dict[str, Experiment],
) -> RunPlan:
    """Return a trial that is ready to be trained, from its start or from its last checkpoint."""
    if not is_unfinished(path):
        shutil.rmtree(path, ignore_errors=True)  # without a checkpoint it starts again
    files.create(path, go_on=True)
    # What another command began to keep is not deleted by this one, which goes on with it.
    mine = not files.has_trial(path) or files.has_temporary_states(path)
    files.write_trial(path, setting.name(seed), temporary=mine and context.keep != "all")
    experiment = _build(setting, seed, path, context.dataset, built)
    start = prepare(path, experiment, context.say)
    return RunPlan(
        experiment,
        path,
        start,
        path / files.CHECKPOINTS,
        context.on_round,
        context.stop,
        save_last=context.keep != "none",
    )


def end_of(
    setting: Setting, seed: int, context: TrialContext, built: dict[str, Experiment]
) -> tuple[Experiment, FederationState]:
    """Return a finished trial, built again, and its state after the last round.

    Args:
      setting, seed: of the trial.
      context: with ``keep="all"``, as the trial was run.
      built: as of `run_trials`.

    Raises:
      RunError: if its checkpoints are gone.
      CheckpointError: naming the checkpoint, if it is damaged or of another version.
    """
    path = setting.path(context.root, seed)
    experiment = _build(setting, seed, path, context.dataset, built)
    last, _ = choose_round(path, "last")
    federation = experiment.federation
    saved, _ = load_checkpoint(path / files.CHECKPOINTS, last, federation.shapes)
    return experiment, federation.restore(saved)


def _build(
    setting: Setting,
    seed: int,
    path: pathlib.Path,
    dataset: FederatedDataset,
    built: dict[str, Experiment],
) -> Experiment:
    """Build a trial, with the programs of another that differs in its seed and step size only.

    Likewise in the own hyperparameter, where that is a number that shapes nothing. A federation
    whose clients' states are not on devices serves one run.
    """
    config = vocabulary.resolve(setting.config(seed))
    # Data of the compiled program instead of constants, so that it serves all values.
    tuned, own = ["learning_rate"], setting.field
    if own is not None and vocabulary.is_number(config.algorithm.name, own):
        tuned += [own] if config.algorithm[own] is not None else []
    # Then every seed is another program.
    if messages.seed_in_program(config):
        return build(config, path / files.CLIENT_STATES, dataset)
    fields = config.to_dict()
    # A schedule of step sizes ends with the rounds.
    others = ("seed",) if in_state(config) else ("seed", "rounds")
    kept = {k: v for k, v in fields.items() if k not in others}
    kept["algorithm"] = {k: v for k, v in fields["algorithm"].items() if k not in tuned}
    name = json.dumps(kept, sort_keys=True)
    if name in built:
        check_algorithm(config, built[name].model, dataset, built[name].federation.task)
        _, _, model, federation, _ = built[name]
        config = effective_config(config, dataset, model, federation)
        return built[name]._replace(config=config)
    experiment = build(config, path / files.CLIENT_STATES, dataset, tuned)
    if experiment.federation.client_state_in == "device":
        built[name] = experiment
    return experiment


def as_one(experiments: Sequence[Experiment], wanted: bool | None) -> bool:
    """Tell whether runs of one config but for the seed are to be one vmapped program.

    They can where the seed makes nothing but keys, and all clients' states, old and new, have room
    on the devices.

    Args:
      experiments: of the runs.
      wanted: True: wherever they can; False: never; None: unless on CPUs, where it
        was not faster (docs/algorithms.md).
    """
    federation, dataset = experiments[0].federation, experiments[0].dataset
    if wanted is False or messages.seed_in_program(experiments[0].config):
        return False
    # Old and new states are there at the same time while a round runs.
    states = 2 * len(experiments) * dataset.num_clients * num_bytes(federation.shapes[1])
    place = choose_place(states, dataset.x.nbytes, federation.mesh, state_dir="unused")
    if not place == federation.client_state_in == "device":
        return False
    return bool(wanted) or federation.mesh.devices.flat[0].platform != "cpu"


def keep_best(candidates: Sequence[Trial]) -> Trial:
    """Return the trial with most merit, the first of equals, and delete the others' states.

    Args:
      candidates: all trials of a search so far, in their order.
    """
    best = max(candidates, key=lambda trial: trial.merit)
    for trial in candidates:
        if trial is not best or trial.merit == -math.inf:
            files.drop_temporary_states(trial.path)
    return best


def _let_go(path: pathlib.Path, context: TrialContext) -> None:
    """Decide about the states of a trial that has ended: those of all trials are too much."""
    if context.keep == "none":
        files.drop_temporary_states(path)
    elif context.keep == "all":
        files.keep_states(path)


def _run(plans: Sequence[RunPlan], context: TrialContext) -> None:
    """Run trials to their ends, together if there are several."""
    release_memory()  # of the trials before these
    ends = train_together(plans)
    for plan, end in zip(plans, ends, strict=True):
        assert plan.workdir is not None
        if isinstance(end, DivergedError):
            files.write_diverged(plan.workdir)
        if not isinstance(end, StoppedError):
            _let_go(plan.workdir, context)
    # Only now, when what the others left is written.
    for end in ends:
        if isinstance(end, StoppedError):
            raise end


def _is_done(path: pathlib.Path, plan: ConfigDict, dataset: FederatedDataset) -> bool:
    """Tell whether a trial was run; not with another config or on other data."""
    if not files.is_finished(path):
        return False
    differ = differences(files.read_config(path), vocabulary.resolve(plan), dataset)
    if differ:
        raise files.WorkdirError(
            f"{path} was run with another config; it differs in {', '.join(differ)}. Choose "
            "another --workdir"
        )
    refuse_other_data(path, dataset)
    return True


def _merit(path: pathlib.Path) -> float:
    summary = files.read_summary(path)
    if files.has_diverged(summary):
        return -math.inf
    headline = files.read_headline(path)
    key = headline.key("validation")
    if key not in summary["last"]:
        raise vocabulary.ConfigError(
            f"{path} has no {key} to choose step sizes by: no client has validation examples that "
            f"have a value of {headline.metric!r}. Set config.dataset.validation_fraction or "
            "validation_count, or another config.headline"
        )
    score = summary["last"][key]
    return -math.inf if score is None else headline.merit(score)  # None: it was not finite
