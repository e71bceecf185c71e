"""The trials of a comparison: runs in directories of their own, seeds as one program."""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated.client_states import choose_place
from pflalign_jax.federated.message_size import num_bytes
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files, resuming
from pflalign_jax.runs import message_config as messages
from pflalign_jax.runs.build import Experiment, build, build_with_messages
from pflalign_jax.runs.loop import rounds
from pflalign_jax.runs.metrics import HEADLINE
from pflalign_jax.runs.round_checks import DivergedError
from pflalign_jax.runs.signals import StoppedError
from pflalign_jax.runs.vmapped_runs import drive

CHOSEN_BY = HEADLINE.format(split="validation")


class Trial(NamedTuple):
    """One run of a comparison.

    Attributes:
      method: its name in the table: an algorithm, or one of ``config.compare.variants``.
      learning_rate: step size.
      own: value of the method's own hyperparameter; None for its default.
      seed: of the run.
      path: its directory.
      score: validation headline of the last round; -inf if training diverged.
    """

    method: str
    learning_rate: float
    own: float | None
    seed: int
    path: pathlib.Path
    score: float


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
        with plan.unlocked():
            plan.algorithm.learning_rate, plan.seed = self.learning_rate, seed
            if self.own is not None:
                plan.algorithm[self.field] = self.own
            if self.rounds is not None:
                plan.rounds = self.rounds
        return plan

    def path(self, root: pathlib.Path, seed: int) -> pathlib.Path:
        """Return the directory of one trial."""
        own = "" if self.own is None else f"-{self.field}-{self.own:g}"
        place = "trials" if self.rounds is None else "search"
        return root / place / f"{self.method}-{self.learning_rate:g}{own}-{seed}"


def run_trials(
    setting: Setting,
    seeds: Sequence[int],
    root: pathlib.Path,
    dataset: FederatedDataset,
    stop: Callable[[], int],
    say: Callable[[str], None],
    together: bool | None,
    on_round: Callable[[int, dict[str, float] | None], None] = lambda done, row: None,
    built: dict[str, Experiment] | None = None,
) -> list[Trial]:
    """Run the trials of a setting or go on with them, unless their directories say they were run.

    Args:
      setting: of all of them.
      seeds: one for each.
      root: the comparison's directory.
      dataset: the setting's.
      stop: the signal to stop for, 0 as long as there is none.
      say: told where trials go on.
      together: whether those that are equally far run as one vmapped program; see `as_one`.
      on_round: called after every round of every trial, as in `pflalign_jax.runs.loop.rounds`.
      built: what trials before these have compiled, and these add; see `_build`.

    Raises:
      WorkdirError: if a trial was run with another config.
      StoppedError: after checkpoints of all, when ``stop`` says so.
    """
    paths = [setting.path(root, seed) for seed in seeds]
    built = {} if built is None else built
    groups: dict[int, list] = {}  # the rounds done of trials that still have some to do
    for seed, path in zip(seeds, paths, strict=True):
        if not _is_done(path, setting.config(seed)):
            if not resuming.unfinished(path):
                shutil.rmtree(path, ignore_errors=True)  # without a checkpoint it starts again
            files.create(path, go_on=True)
            experiment = _build(setting, seed, path, dataset, built)
            start = resuming.prepare(path, experiment, True, say)
            done = 0 if start.state is None else int(start.state.round)
            groups.setdefault(done, []).append((path, experiment, start))
    for group in groups.values():
        experiments = [experiment for _, experiment, _ in group]
        if len(group) > 1 and as_one(experiments, together):
            _run(group, stop, on_round)
        else:
            for one in group:
                _run([one], stop, on_round)
    return [
        Trial(setting.method, setting.learning_rate, setting.own, seed, path, _score(path))
        for seed, path in zip(seeds, paths, strict=True)
    ]


def _build(setting, seed, path, dataset, built):
    """Build a trial, with the programs of another that differs in its seed and step size only.

    Likewise in the own hyperparameter, where that is a number that shapes nothing. A federation
    whose clients' states are not on devices serves one run.
    """
    config = vocabulary.resolve(setting.config(seed))
    tuned, own = ["learning_rate"], setting.field
    if own is not None and vocabulary.is_number(config.algorithm.name, own):
        tuned += [own] if config.algorithm[own] is not None else []
    if messages.seed_in_program(config):
        return build(config, path / "client_states", dataset)
    fields = config.to_dict()
    kept = {k: v for k, v in fields.items() if k not in ("seed", "rounds")}
    kept["algorithm"] = {k: v for k, v in fields["algorithm"].items() if k not in tuned}
    name = json.dumps(kept, sort_keys=True)
    if name in built:
        build_with_messages(config, built[name].model, dataset)  # are its values allowed?
        return built[name]._replace(config=config)
    experiment = build(config, path / "client_states", dataset, tuned)
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
    states = 2 * len(experiments) * dataset.num_clients * num_bytes(federation.shapes[1])
    place = choose_place(states, dataset.x.nbytes, federation.mesh, state_dir="unused")
    if not place == federation.client_state_in == "device":
        return False
    return bool(wanted) or federation.mesh.devices.flat[0].platform != "cpu"


def _run(group, stop, on_round):
    """Run trials to their ends, as one program if there are several."""
    runs = [
        rounds(
            experiment,
            path,
            on_round,
            start=start,
            checkpoints=path / "checkpoints",
            stop=stop,
            save_last=False,
        )
        for path, experiment, start in group
    ]
    ends = drive(runs, group[0][1].federation)
    for (path, _, _), end in zip(group, ends, strict=True):
        if isinstance(end, DivergedError):
            files.write_json(path / "summary.json", {"diverged": True})
        if not isinstance(end, StoppedError):
            shutil.rmtree(path / "checkpoints", ignore_errors=True)  # those of all are too much
    for end in ends:
        if isinstance(end, StoppedError):
            raise end


def _is_done(path, plan):
    """Tell whether a trial was run; not with another config."""
    if not (path / "summary.json").exists():
        return False
    wanted = json.loads(json.dumps(vocabulary.resolve(plan).to_dict()))
    found = json.loads((path / "config.json").read_text())
    if found != wanted:
        differ = sorted(resuming.leaves(found).items() ^ resuming.leaves(wanted).items())
        raise files.WorkdirError(
            f"{path} was run with another config; it differs in "
            f"{', '.join(sorted({name for name, _ in differ}))}. Choose another --workdir"
        )
    return True


def _score(path):
    summary = json.loads((path / "summary.json").read_text())
    score = -math.inf if "diverged" in summary else summary["last"].get(CHOSEN_BY)
    if score is None:
        raise vocabulary.ConfigError(
            "there is no validation split to choose step sizes by; set "
            "config.dataset.validation_fraction or validation_count"
        )
    return score
