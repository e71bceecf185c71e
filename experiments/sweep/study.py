"""A study: of a grid that is too large, or has ranges, Optuna chooses what is tried next.

Its trials are the combinations of `experiments.sweep.cells`, with the same directories and results.
Optuna keeps what it has asked for in the file `JOURNAL`, which several processes may share.
"""

from __future__ import annotations

import math
import pathlib
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.sweep.cells import Cache, Result, Sweep, run_cell, same_headline
from experiments.sweep.grid import RANGE, Combination, Grid, combinations, has_ranges
from pflalign_jax.cli.command import FlagError
from pflalign_jax.cli.console import ComparisonProgress
from pflalign_jax.cli.flags import with_fields
from pflalign_jax.errors import UserError
from pflalign_jax.runs.config import field_type
from pflalign_jax.runs.config_checks import LARGEST_FLOAT
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.lock import InUseError

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
"""File of a sweep's directory: what Optuna has asked for and was told, in its own form."""

DIGITS = 4
"""Of the fractions that are tried, where a range is no narrower than its ends are large; more would
tell nothing, and make names of folders long."""


class Range(NamedTuple):
    """All numbers between two ends, as ``low..high`` or ``low..high:log`` give them.

    Attributes:
      low, high: the ends, which belong to it.
      log: whether their logarithms are drawn, not they themselves.
      whole: whether it has whole numbers only, as the field's type says; where no type is known,
        if both ends are written so.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def text(self, number: float) -> str:
        """Return a number of it as a value of a config field.

        Fractions have four digits, and those more that its two ends share.

        >>> Range(0.001, 0.99996, True, False).text(0.0123456)
        '0.01235'
        >>> Range(0.001, 0.9999999, True, False).text(0.9999999)
        '0.9999999'
        >>> Range(0.999, 0.9999, False, False).text(0.999123456)
        '0.9991235'
        """
        if self.whole:
            return str(int(number))
        narrow = max(abs(self.low), abs(self.high)) / (self.high - self.low)
        digits = DIGITS + max(0, math.floor(math.log10(narrow)))
        return f"{min(max(float(f'{number:.{digits}g}'), self.low), self.high):.15g}"


Space = Mapping[str, Range | Sequence[str]]
"""Field of the config to what a study may choose for it: of a range, or of texts."""


def refuse_ranges(grid: Grid) -> None:
    """Refuse a grid with a range where all combinations are to be run.

    Raises:
      FlagError: naming the field.
    """
    for name, texts in grid.items():
        if has_ranges({name: texts}):
            raise FlagError(
                f"--sweep.{name}={','.join(texts)} is a range; say how many of its values are to "
                "be tried by --trials=N, or list them with commas between them"
            )


def space_of(config: ConfigDict, grid: Grid) -> Space:
    """Return what a study may choose from.

    Raises:
      UserError: without Optuna, before anything is made for it.
      FlagError: for a range that has no numbers, or that does not stand alone; or for a field
        ``name`` of a section that there is not.
      ConfigError: for a name there that means nothing.
    """
    _optuna()
    # What type a field has is for the functions to say that the grid names.
    named = {name: texts[0] for name, texts in grid.items() if name.endswith(".name")}
    config = with_fields(config, named)
    space: dict[str, Range | Sequence[str]] = {}
    for name, texts in grid.items():
        space[name] = texts
        if has_ranges({name: texts}):
            found = RANGE.fullmatch(texts[0])
            if found is None or len(texts) > 1:
                raise FlagError(
                    f"--sweep.{name}={','.join(texts)} mixes a range with other values; give one "
                    "range, or values alone"
                )
            space[name] = _range(found, f"--sweep.{name}", field_type(config, name))
    return space


def _range(found: re.Match[str], flag: str, kind: Any) -> Range:
    """Return the range of a match of `RANGE`, for a field with values of type ``kind``."""
    low, high = float(found[1]), float(found[2])
    kinds = (kind, *typing.get_args(kind))
    written_whole = all(re.fullmatch(r"[-+]?\d+", end) for end in found.groups()[:2])
    whole = float not in kinds and (int in kinds or written_whole)
    reason = None
    if not low < high:
        reason = "its first number must be the smaller one"
    elif found[3] and low <= 0:
        reason = "a range :log must begin above 0"
    elif max(abs(low), abs(high)) > LARGEST_FLOAT:
        reason = f"numbers go up to {LARGEST_FLOAT}"
    elif whole and not (low.is_integer() and high.is_integer()):
        reason = "the field has whole numbers only; both ends must be whole numbers, too"
    if reason is not None:
        raise FlagError(f"{flag}={found[0]} is no range: {reason}")
    return Range(low, high, bool(found[3]), whole)


def ends_of(config: ConfigDict, space: Space, search: bool) -> list[Combination]:
    """Return combinations with every value that is listed, and with both ends of every range.

    What a trial could not have is so refused before there is any. Each field is changed alone: all
    together may be too many.

    Args:
      config, search: as of `experiments.sweep.grid.combinations`.
      space: what may be chosen.

    Raises:
      FlagError, ConfigError: as `experiments.sweep.grid.combinations`.
    """
    ends = {
        name: [of.text(of.low), of.text(of.high)] if isinstance(of, Range) else list(of)
        for name, of in space.items()
    }
    firsts = {name: texts[:1] for name, texts in ends.items()}
    changed = [firsts | {name: texts} for name, texts in ends.items()] or [firsts]
    return [each for grid in changed for each in combinations(config, grid, search)]


class Study(NamedTuple):
    """A study that has begun, or goes on.

    Attributes:
      sweep: what its trials have in common.
      space: what may be chosen.
      asked: Optuna's study.
    """

    sweep: Sweep
    space: Space
    asked: optuna.Study

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All that were asked for; not copied, as each is looked at in each trial."""
        return self.asked.get_trials(deepcopy=False)

    def numbers(self, count: int) -> Iterator[int]:
        """Yield the numbers of the first trials, and ask for those that there are not yet."""
        number = 0
        while count:
            if number >= len(self.trials):
                self._ask()
            # A process that was killed while it asked leaves a trial without all values.
            if set(self.trials[number].params) == set(self.space):
                yield number
                count -= 1
            number += 1

    def _ask(self) -> None:
        optuna = _optuna()
        distributions = {}
        for name, of in self.space.items():
            if not isinstance(of, Range):
                distributions[name] = optuna.distributions.CategoricalDistribution(of)
            elif of.whole:
                distributions[name] = optuna.distributions.IntDistribution(
                    int(of.low), int(of.high), of.log
                )
            else:
                distributions[name] = optuna.distributions.FloatDistribution(
                    of.low, of.high, of.log
                )
        # A seed for each trial: what is chosen does not depend on what this process chose before.
        # Mixed: the first numbers drawn from the seeds 0, 1, 2 and 3 all lie in the middle.
        seed = int(np.random.SeedSequence(len(self.trials)).generate_state(1)[0])
        self.asked.sampler = optuna.samplers.TPESampler(seed=seed)
        self.asked.ask(distributions)

    def combination(self, number: int) -> Combination:
        """Return what a trial runs."""
        chosen = self.trials[number].params
        values = {
            name: [of.text(chosen[name]) if isinstance(of, Range) else chosen[name]]
            for name, of in self.space.items()
        }
        (found,) = combinations(self.sweep.config, values, self.sweep.search)
        return found


def open_study(sweep: Sweep, grid: Grid, space: Space) -> Study:
    """Return the study of a sweep's directory, a new one if there is none.

    Raises:
      WorkdirError: if the file cannot be read, or is of another study.
    """
    path = sweep.root / JOURNAL
    wanted = {name: list(texts) for name, texts in grid.items()}
    try:
        asked = _open_journal(path)
        fields = asked.user_attrs.get("fields")
        if fields is None:
            asked.set_user_attr("fields", wanted)
    # Optuna asserts what it does not expect to find.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise WorkdirError(
            f"{path} cannot be read ({error}); put it back, or delete it: trials in "
            f"{sweep.root}/cells that are chosen again are not run again"
        ) from error
    if fields not in (None, wanted):
        before = " ".join(f"--sweep.{name}={','.join(texts)}" for name, texts in fields.items())
        raise WorkdirError(f"{path} is of a study with {before}; choose another --workdir")
    return Study(sweep, space, asked)


def _open_journal(path: pathlib.Path) -> optuna.Study:
    optuna = _optuna()
    journal = optuna.storages.journal
    # Optuna would make a link instead, and wait without end for one that a killed process left, if
    # the path is relative.
    lock = journal.JournalFileOpenLock(str(path))
    _cut_unfinished_line(path, lock)
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(path), lock))
    return optuna.create_study(
        storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
    )


def _cut_unfinished_line(path: pathlib.Path, lock: Any) -> None:
    """Cut off what a process that died while it wrote left behind the last whole line.

    Optuna would read past it, and go on writing in the same line.
    """
    lock.acquire()
    try:
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if content[whole:].startswith(b"{"):  # else it is none of Optuna's
                file.truncate(whole)
    finally:
        lock.release()


def run_trials(
    study: Study,
    trials: int,
    progress: ComparisonProgress,
    stop: Callable[[], int] = lambda: 0,
) -> tuple[list[Result], int]:
    """Run what is missing of a study's first trials.

    Several processes may do so at the same time. Every trial is chosen by its number and by those
    that are done when it is asked for: one process alone, however often it is interrupted, makes
    the same study.

    Args:
      study: as of `open_study`.
      trials: how many.
      progress, stop: as in `experiments.sweep.cells.run_cells`.

    Returns:
      The results in the order of their trials, one where two have the same values, and how many
      there are not, as other processes still work on them.

    Raises:
      ConfigError, StoppedError: as `run_cells`.
    """
    sweep, cache = study.sweep, Cache()
    chosen: dict[str, Combination] = {}
    done: list[Result] = []
    if not sweep.search:
        left = max(0, trials - _num_told(study))
        progress.expect(left * sweep.seeds * sweep.config.rounds)
    for number in study.numbers(trials):
        each = study.combination(number)
        chosen[each.folder()] = each
        try:
            result = run_cell(sweep, each, cache, progress, stop)
        except InUseError:
            continue
        done.append(result)
        same_headline(done)
        study.asked.tell(number, _value(result), skip_if_finished=True)
    # All are read once more: another process may be done with its own by now.
    results = sweep.results(chosen.values())
    return results, len(chosen) - len(results)


def _num_told(study: Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _value(result: Result) -> float:
    """Return what a study looks for the largest of; where a seed diverged it is the least."""
    diverged, merit = result.merit
    return merit if diverged == 0 else -math.inf


def _optuna() -> Any:
    """Return the module ``optuna``, which is optional."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "--trials needs the package optuna; install it with pip install 'pflalign-jax[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
