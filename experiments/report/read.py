"""Read what runs and comparisons have written, for a report."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.reported import SCORE, ReportedRun, Searched, Series
from pflalign_jax.errors import UserError
from pflalign_jax.runs import files, read_types, round_files

COSTS = dict.fromkeys(("bytes_up", "bytes_down", "seconds", "seconds_total"), read_types.Number)
"""What every row says that a round has cost."""


class ReportError(UserError):
    """A directory that no report can be made of; the message names it and says what to do."""


def read(paths: Sequence[pathlib.Path], notes: list[str]) -> list[Series]:
    """Return the runs of directories, the best mean of the headline first.

    Of a comparison it takes, for every method, the setting that was run with the most seeds, and of
    these the best on validation with the first: the one that `experiments.compare` chose.

    Args:
      paths: directories of runs and comparisons.
      notes: gets what was left out.

    Raises:
      ReportError: for a directory without any, or runs that are scored by different metrics.
      RunError: naming a file that cannot be read.
    """
    if not paths:
        raise ReportError("no DIR given; name the --workdir of a run or of a comparison")
    found: list[ReportedRun] = []
    for path in paths:
        if not path.is_dir():
            raise ReportError(f"{path} is not a directory")
        found += (
            _chosen_trials(path, notes) if files.is_comparison(path) else [_single_run(path, notes)]
        )
    if not found:
        raise ReportError(f"no run is finished in {', '.join(map(str, paths))}")
    # Runs of one name and one config are the seeds of one series.
    groups: dict[tuple, list[ReportedRun]] = {}
    for run in found:
        groups.setdefault((run.name, _setting(run)), []).append(run)
    series = _told_apart([Series(name, runs) for (name, _), runs in groups.items()])
    if len({each.partition for each in series}) > 1:
        notes.append("Runs have different partitions: clients of different ones are not compared.")
    metrics = sorted({run.headline.metric for each in series for run in each.runs})
    if len(metrics) > 1:
        raise ReportError(
            f"runs are scored by {' and '.join(metrics)}, which cannot be compared; make a report "
            "of each"
        )

    def merit(each: Series) -> float:
        values = each.last(each.headline.key("test"))
        return each.headline.merit(float(np.mean(values))) if values else -np.inf

    return sorted(series, key=merit, reverse=True)


def _read_run(path: pathlib.Path, name: str | None = None) -> ReportedRun | None:
    """Return the run of a directory, named by its algorithm; None if it was never evaluated."""
    rows = round_files.read_rows(path)
    if not rows:
        return None
    config, headline = files.read_config(path), files.read_headline(path)
    data = files.read_data(path, default={})
    summary = files.read_summary(path) if files.is_finished(path) else None
    _check_fields(path, rows, config, data, summary)
    found = round_files.last_scores(path, SCORE)
    # Some metrics have no value for some clients.
    scores = {client: row.values[headline.metric] for client, row in found.items()}
    scores = {client: headline.shown(x) for client, x in scores.items() if np.isfinite(x)}
    return ReportedRun(
        config["algorithm"]["name"] if name is None else name,
        path,
        config,
        summary,
        rows,
        headline,
        scores,
        {client: row.examples for client, row in found.items()},
        round_files.read_diagnostics(path),
        data,
    )


def _check_fields(
    path: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    summary: Mapping[str, Any] | None,
) -> None:
    """Refuse a run that lacks what a report shows, or has other kinds of values.

    Raises:
      ReportError: naming the file and the field.
    """
    name = files.METRICS
    try:
        for row in rows:
            read_types.check_fields(row, COSTS, required=True)
            read_types.check_fields(row, dict.fromkeys(row, read_types.Number | None))
        name = files.CONFIG
        read_types.check_fields(config["algorithm"], {"name": str}, required=True)
        name = files.SUMMARY
        read_types.check_fields((summary or {}).get("dataset", {}), {"clients": int})
        name = files.DATA
        counts = data.get("label_counts", [])
        if counts and {len(data.get("client_names", ()))} != {len(counts)}:
            raise read_types.ReadError(f"label_counts has {len(counts)} rows, one for each client")
        if len({len(row) for row in counts}) > 1:
            raise read_types.ReadError("label_counts has rows of several lengths")
    except read_types.ReadError as error:
        raise ReportError(
            f"{path / name} cannot be shown ({error}); put it back, or leave this run out"
        ) from error


def _single_run(path: pathlib.Path, notes: list[str]) -> ReportedRun:
    run = _read_run(path)
    if run is None:
        raise ReportError(
            f"{path} holds neither a run (metrics.jsonl with a row) nor a comparison "
            "(trials/); give the --workdir of experiments.run or experiments.compare"
        )
    if run.summary is None:
        notes.append(f"{path.name} is not finished: it has come to round {run.rows[-1]['round']}.")
    return run


def _chosen_trials(root: pathlib.Path, notes: list[str]) -> list[ReportedRun]:
    """Return the runs of the setting that a comparison chose for every method."""
    groups: dict[str, dict[tuple, list[ReportedRun]]] = {}
    left_out = []
    for path in files.trial_dirs(root, files.TRIALS):
        if not files.is_finished(path) or files.has_diverged(files.read_summary(path)):
            reason = "diverged" if files.is_finished(path) else "not finished"
            left_out.append(f"{path.name} ({reason})")
            continue
        run = _read_run(path, files.read_trial(path).method)
        if run is None:
            raise ReportError(
                f"{path} is finished, but {files.METRICS} has no row; put it back, or remove {path}"
            )
        groups.setdefault(run.name, {}).setdefault(_setting(run), []).append(run)
    if left_out:
        notes.append(f"Left out: {', '.join(left_out)}.")

    # The chosen setting was repeated with further seeds; of single runs the best on validation.
    def rank(runs: list[ReportedRun]) -> tuple[int, float]:
        first = min(runs, key=lambda run: run.config["seed"])
        score = first.rows[-1].get(first.headline.key("validation"))
        return len(runs), -np.inf if score is None else first.headline.merit(score)

    tried = _tried(root)
    return [
        run._replace(searched=_searched(run, tried))
        for settings in groups.values()
        for run in max(settings.values(), key=rank)
    ]


class _Tried(NamedTuple):
    """A trial of a comparison that has ended.

    Attributes:
      name: which it is.
      algorithm: of its config.
      score: on validation after its last round; None if training diverged.
      diverged: whether it did.
    """

    name: files.TrialName
    algorithm: dict[str, Any]
    score: float | None
    diverged: bool


def _tried(root: pathlib.Path) -> list[_Tried]:
    """Return the trials of a comparison that have ended, those of a shorter search last."""
    found = []
    for place in (files.TRIALS, files.SEARCH):
        for path in files.trial_dirs(root, place):
            if files.is_finished(path):
                summary, headline = files.read_summary(path), files.read_headline(path)
                diverged = files.has_diverged(summary)
                score = (
                    None if diverged else summary.get("last", {}).get(headline.key("validation"))
                )
                found.append(
                    _Tried(
                        files.read_trial(path),
                        files.read_config(path)["algorithm"],
                        None if score is None else headline.shown(score),
                        diverged,
                    )
                )
    return found


def _searched(run: ReportedRun, tried: Sequence[_Tried]) -> Searched:
    """Return what was tried for the method of a chosen run."""
    chosen = files.read_trial(run.path)
    same = [trial for trial in tried if trial.name.method == run.name]
    field = next((trial.name.field for trial in same if trial.name.own is not None), None)
    own = {trial.algorithm.get(field) for trial in same} if field else set()
    return Searched(
        # A shorter search comes last: what it chose was trained again, which is no search.
        rates={
            trial.name.learning_rate: trial.score
            for trial in same
            if trial.name.own is None and trial.name.seed == 0
        },
        field=field,
        own=sorted(value for value in own if isinstance(value, int | float)),
        diverged=sum(
            trial.diverged and trial.name._replace(seed=chosen.seed) == chosen for trial in same
        ),
    )


def _setting(run: ReportedRun) -> tuple[tuple[str, str], ...]:
    """Return what runs of one series have in common, which may be of different machines."""
    different = {"seed", "client_chunk", "client_state_in"}
    fields = files.flat_fields(run.config)
    return tuple(sorted((k, v) for k, v in fields.items() if k not in different))


def _told_apart(series: Sequence[Series]) -> list[Series]:
    """Give series of one name names that tell them apart by the fields that differ."""
    result = []
    for each in series:
        same = [dict(_setting(other.runs[0])) for other in series if other.name == each.name]
        own = dict(_setting(each.runs[0]))
        differ = sorted(k for k in own if any(other.get(k) != own[k] for other in same))
        of = ", ".join(f"{k.removeprefix('algorithm.')}={own[k]}" for k in differ)
        result.append(each._replace(name=f"{each.name} ({of})" if of else each.name))
    return result
