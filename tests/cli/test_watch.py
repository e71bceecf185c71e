"""What one sees of a run while it runs, and what other tools get of it."""

import csv
import io
import struct
import time

import pytest
from rich.console import Console

from pflalign_jax.cli import console as show
from pflalign_jax.cli import loggers
from pflalign_jax.cli.command import FlagError
from pflalign_jax.runs import files

NAME = "accuracy/validation/personal/adapted/mean"
ROWS = [{"round": r, NAME: a, "seconds": 0.5, "epsilon": None}
        for r, a in ((2, 0.5), (4, 0.75), (6, 0.625))]  # fmt: skip


def told(terminal, rows=(), shown=ROWS):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150)
    with show.progress(6, 20, console, rows) as on_round:
        for done in range(1, 7):
            on_round(done, shown[done // 2 - 1] if done % 2 == 0 else None)
    return out.getvalue()


def test_lines_where_there_is_no_terminal():
    lines = told(False).splitlines()
    assert lines[0].startswith(f"round 2/6  cohort 20  {NAME} 50.00 (best 50.00) %  0.50 s/round")
    assert f"round 6/6  cohort 20  {NAME} 62.50 (best 75.00) %" in lines[-1]  # few, but the last
    assert lines[-1].endswith(" host") and " GB " in lines[-1] and "\x1b" not in lines[-1]
    before = [{"round": 1, NAME: 0.875}]
    assert "62.50 (best 87.50)" in told(False, before)


def test_a_bar_on_a_terminal():
    text = told(True)
    for part in ("6/6", f"20 clients a round; {NAME}", "62.50 (best 75.00)", "0.50 s/round", "GB"):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_no_best_of_a_score_on_test_data(terminal):
    score = NAME.replace("validation", "test")
    rows = [{**row, score: row[NAME]} for row in ROWS]
    for row in rows:
        del row[NAME]
    text = told(terminal, rows=rows[:1], shown=rows)
    assert score in text and "62.50" in text and "best" not in text


def logged(path, names, rows, before=()):
    loggers.check_loggers(names)
    with loggers.log_to(names, path, {"rounds": 6}, before) as log:
        for row in rows:
            log(row)


def test_csv_goes_on(tmp_path):
    logged(tmp_path, ["csv"], ROWS[:2])
    logged(tmp_path, ["csv"], ROWS[1:], before=ROWS[:1])  # killed after the second row
    with (tmp_path / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["round"] for row in found] == ["2", "4", "6"] and list(found[0]) == list(ROWS[0])
    assert [float(row[NAME]) for row in found] == [0.5, 0.75, 0.625]
    files.write_text(tmp_path / "other.txt", "")  # nothing else was left behind
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.csv", "other.txt"}


def events(path):
    """Return ``(purged before, [(round, name, value)])`` of TensorBoard's files, oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    purged, found = 0, []
    for file in sorted(path.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == event.session_log.START:
                purged = event.step
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return purged, found


def test_tensorboard_goes_on(tmp_path):
    logged(tmp_path, ["tensorboard"], ROWS[:2])
    place = tmp_path / "tensorboard"
    assert events(place)[1] == [(2, NAME, 0.5), (2, "seconds", 0.5), (4, NAME, 0.75),
                                (4, "seconds", 0.5)]  # fmt: skip
    for file in place.iterdir():
        file.rename(file.with_name(file.name + ".first"))  # names have seconds
    logged(tmp_path, ["tensorboard"], ROWS[1:], before=ROWS[:1])
    purged, found = events(place)
    assert purged == 3 and (6, NAME, 0.625) in found


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    logged(tmp_path, ["wandb"], ROWS)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    name = (tmp_path / "wandb_id.txt").read_text().strip()
    (file,) = folder.glob("*.wandb")
    assert name in folder.name
    until = time.monotonic() + 60  # a process of its own writes it
    while b"0.625" not in file.read_bytes() and time.monotonic() < until:
        time.sleep(0.05)
    data = file.read_bytes()
    assert NAME.encode() in data and b"0.625" in data


def test_what_cannot_be_logged_to_is_refused_first(monkeypatch):
    with pytest.raises(FlagError, match="--log=tensorbord is unknown; did you mean 'tensorboard'"):
        loggers.check_loggers(["csv", "tensorbord"])
    monkeypatch.setitem(loggers.LOGS, "wandb", "nosuchpackage")
    with pytest.raises(FlagError, match=r"--log=wandb needs nosuchpackage.*pip install"):
        loggers.check_loggers(["wandb"])
