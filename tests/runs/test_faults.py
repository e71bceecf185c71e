"""What a run does after damage to each of its files: it ends the same, or refuses by name.

The table is that of docs/resume.md.
"""

import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from small_runs import built, go, interrupted, same, small, stopped_after

import pflalign_jax as pfl
from pflalign_jax.cli.command import tells_how_to_go_on
from pflalign_jax.errors import UserError
from pflalign_jax.federated import StoreError
from pflalign_jax.runs import files, resuming, signals
from pflalign_jax.runs.checkpoints import checkpoint_path
from pflalign_jax.runs.files import RunError
from pflalign_jax.runs.loop import RunPlan, train
from pflalign_jax.runs.round_checks import DivergedError

CONFIG = small(client_state_in="disk")
pytestmark = pytest.mark.usefixtures("no_peak")


class Fault(NamedTuple):
    """One change to a run that was stopped after round 3, with checkpoints of rounds 2 and 3.

    Attributes:
      name: of the case.
      damage: changes the directory.
      message: what is said or raised.
      same: whether the run then ends as one that was never disturbed; else it is refused and no
        file changes.
    """

    name: str
    damage: Callable[[Path], object]
    message: str
    same: bool


def other_bytes(file: Path) -> None:
    """Write other bytes of the same length, which can be read as well."""
    content = file.read_bytes()
    at = next(i for i in reversed(range(len(content))) if content[i : i + 1] in b"123456789")
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert len(file.read_bytes()) == len(content) and file.read_bytes() != content


def change_states_of_the_last_round(run: Path) -> None:
    log = np.frombuffer((run / "client_states/rounds.log").read_bytes(), np.int64)
    start = 0
    for _ in range(2):
        start += 2 + 3 * log[start + 1] + 1
    members = log[start + 1]
    states = run / "client_states/states.bin"
    content = bytearray(states.read_bytes())
    slot_bytes = len(content) // (1 + log[start + 2 + members : start + 2 + 2 * members].max())
    content[log[start + 2 + members] * slot_bytes + 5] ^= 1
    states.write_bytes(content)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def append(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


def zero_arrays(run: Path) -> None:
    for file in (checkpoint_path(run / "checkpoints", 3) / "state").rglob("d/*"):
        zero(file)


ASIDE = "it is set aside as unusable-00000003"
SLOW = pytest.mark.slow

FAULTS = [
    Fault("nothing", lambda run: None, "going on in .* after round 3 of 6", True),
    Fault("a state changed", change_states_of_the_last_round, f"not match.*{ASIDE}", True),
    Fault("all states zero", lambda run: zero(run / "client_states/states.bin"),
          "no checkpoint in .* can be used: .* states of clients 0, 1", False),
    Fault("rounds.log cut", lambda run: (run / "client_states/rounds.log").write_bytes(
        (run / "client_states/rounds.log").read_bytes()[:-1]), f"only up to round 2.*{ASIDE}",
        True),
    Fault("layout.json empty", lambda run: (run / "client_states/layout.json").write_text(""),
          r"no checkpoint in .* can be used: .*layout\.json cannot be read", False),
    Fault("config.json gone", lambda run: (run / "config.json").unlink(),
          r"holds metrics\.jsonl, .* of a run, but its config\.json is missing", False),
    Fault("data.json gone", lambda run: (run / "data.json").unlink(),
          r"data\.json is missing, which says .*; put it back", False),
    Fault("partition.npz gone", lambda run: (run / "partition.npz").unlink(), "going on", True),
    Fault("partition.npz zero", lambda run: zero(run / "partition.npz"), "going on", True),
    Fault("clients.csv: other bytes", lambda run: other_bytes(run / "clients.csv"),
          r"bytes of .*clients\.csv differ .* Put it back", False),
    Fault("metrics.jsonl: other bytes", lambda run: other_bytes(run / "metrics.jsonl"),
          r"bytes of .*metrics\.jsonl differ .* Put it back", False),
    Fault("clients.csv empty", lambda run: (run / "clients.csv").write_text(""),
          r"clients\.csv has 0 bytes, \d+ when the checkpoint", False),
    Fault("metrics.jsonl: a torn line", lambda run: append(run / "metrics.jsonl", '{"rou'),
          "going on", True),
    Fault("checkpoint: arrays zero", zero_arrays, f"00000003 is damaged.*{ASIDE}", True),
    Fault("checkpoint: meta gone", lambda run: shutil.rmtree(
        checkpoint_path(run / "checkpoints", 3) / "meta"), f"00000003 is damaged.*{ASIDE}", True),
]  # fmt: skip

IN_DEFAULT_RUN = ("a state changed", "all states zero", "config.json gone", "data.json gone",
                  "clients.csv: other bytes", "metrics.jsonl: other bytes")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One directory for all runs: client states on disk are of a directory, and so are programs."""
    return tmp_path_factory.mktemp("faults") / "run"


@pytest.fixture(scope="module")
def alone(place):
    go(place, CONFIG)
    return place.rename(place.parent / "alone")


@pytest.fixture(scope="module")
def half(alone, place):
    return interrupted(place, CONFIG).rename(place.parent / "half")


@pytest.fixture
def run(half, place):
    yield shutil.copytree(half, place)
    shutil.rmtree(place)


@pytest.fixture
def empty(half, place):
    yield place
    shutil.rmtree(place)


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=() if f.name in IN_DEFAULT_RUN else SLOW) for f in FAULTS],
)
def test_damage(fault, run, alone):
    fault.damage(run)
    before, said = contents(run), []
    if fault.same:
        go(run, CONFIG, said)
        assert_said(fault.message, "\n".join(said))
        same(run, alone)
    else:
        with pytest.raises(UserError) as error:
            go(run, CONFIG, said)
        assert_said(fault.message, str(error.value))
        assert contents(run) == before


def assert_said(pattern, text):
    assert re.search(pattern, text), text


@pytest.mark.slow
@pytest.mark.parametrize("size", np.geomspace(1_000, 300_000, 17).astype(int).tolist())
def test_no_room_for_files_above_a_size(size, run, alone):
    """The system refuses to write more to a file, as it refuses on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        go(run, CONFIG)
    except UserError as error:
        assert_said(r"cannot (be written|take|hold)|[Mm]ake room", str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    print(f"{size} bytes: {'finished' if files.is_finished(run) else 'ended, and goes on'}")
    if not files.is_finished(run):
        go(run, CONFIG)
    same(run, alone)


def test_loading_writes_nothing(run):
    before = contents(run)
    loaded = pfl.load_run(run)
    loaded.personal_params(0)
    assert contents(run) == before


def test_what_a_run_that_went_on_has_written_over_is_not_loaded(run):
    loaded, wanted = pfl.load_run(run), pfl.load_run(run)
    states = [wanted.personal_params(k) for k in range(6)]
    go(run, CONFIG)
    for k in range(6):
        try:
            jax.tree.map(np.testing.assert_array_equal, loaded.personal_params(k), states[k])
        except RunError as error:
            assert "goes on and no longer keeps its checkpoint of round 3" in str(error)


def test_a_damaged_state_and_changed_metrics_are_not_loaded(run):
    zero(run / "client_states" / "states.bin")
    loaded = pfl.load_run(run)
    k = next(k for k in range(6) if loaded_state_is_damaged(loaded, k))
    with pytest.raises(StoreError, match=f"the state of client {loaded.client_names[k]} .bytes"):
        loaded.personal_params(k)
    other_bytes(run / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl differ from when"):
        pfl.load_run(run)


def loaded_state_is_damaged(loaded, k):
    try:
        loaded.personal_params(k)
    except StoreError:
        return True
    return False


def test_a_best_checkpoint_that_is_gone_is_not_replaced_by_another(run):
    shutil.rmtree(checkpoint_path(run / "checkpoints", 2))
    with pytest.raises(RunError, match=r"round 2 was the best .* which has rounds \[3\]: use one"):
        pfl.load_run(run, "best")


def test_a_run_stopped_before_its_first_evaluation_is_loaded(empty):
    loaded = pfl.load_run(interrupted(empty, CONFIG, 1))
    assert (loaded.round, loaded.metrics) == (1, [])
    assert jax.tree.leaves(loaded.personal_params(0))
    with pytest.raises(RunError, match="no checkpoint with a validation score"):
        pfl.load_run(empty, "best")


def test_a_run_that_refused_stays_stopped(tmp_path):
    config = small(on_nonfinite="raise")
    config.model.name, config.model.hidden = "mlp", (4,)
    config.algorithm.name, config.algorithm.learning_rate = "fedavg", 1e30
    with pytest.raises(DivergedError) as first:
        go(tmp_path, config)
    before = contents(tmp_path)
    with pytest.raises(DivergedError) as again:
        go(tmp_path, config)
    assert str(again.value).startswith(str(first.value))
    assert contents(tmp_path) == before


def test_what_is_drawn_of_a_run_is_there_when_it_is_finished(run, alone):
    experiment, drawn = built(run, CONFIG), []

    def interrupted_while_drawing(outcome):
        raise KeyboardInterrupt

    def plan(on_end):
        start = resuming.prepare(run, experiment, [].append)
        return RunPlan(experiment, run, start, run / "checkpoints", on_end=on_end)

    with pytest.raises(KeyboardInterrupt):
        train(plan(interrupted_while_drawing))
    assert not files.is_finished(run)
    train(plan(drawn.append))
    assert drawn[0].scores and files.is_finished(run)
    same(run, alone)


@pytest.mark.parametrize(
    ("fields", "rounds", "advice"),
    [
        ({"checkpoint_every": 1}, 3, r"the same command with --workdir={} goes on from the check"),
        ({"checkpoint_every": 0}, 1, r"the same command with --workdir={} starts again from ro"),
        ({"checkpoint_every": 0}, 3, r"it cannot go on, .*checkpoint_every=0.*or delete {}$"),
    ],
    ids=["with a checkpoint", "before the first evaluation", "without checkpoints"],
)
def test_advice_is_what_the_same_command_does(fields, rounds, advice, empty, capsys):
    config = small(client_state_in="disk", **fields)
    with pytest.raises(SystemExit) as ended, tells_how_to_go_on(empty):
        go(empty, config, asked=stopped_after(rounds))
    assert ended.value.code == 128 + 15
    assert_said(advice.format(re.escape(str(empty))), capsys.readouterr().err.strip())
    said = []
    if "cannot go on" in advice:
        with pytest.raises(files.WorkdirError, match="saved no checkpoints"):
            go(empty, config, said)
    else:
        go(empty, config, said)
        assert_said(r"goes on|going on in .* after round 3|starts again from round 0", said[0])


def test_a_closed_terminal_is_a_request_to_stop_unless_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with signals.asked_to_stop() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked() == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with signals.asked_to_stop() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
