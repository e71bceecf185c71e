"""Files of a run that hold something else: each reader names the file, the value and what to do."""

import json
import os

import pytest

from pflalign_jax.runs import files
from pflalign_jax.runs.files import RunError, WorkdirError
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.round_files import read_clients, read_rows

CONFIG = {"seed": 0, "algorithm": {"name": "fedavg", "learning_rate": 0.1}, "dataset": {}}
ROW = b'{"round": 1, "loss/train/mean": 0.5}\n'
CSV = b"round,client,split,model,stage,examples,accuracy\n1,ann,test,global,,3,0.5\n"
PUT_BACK = "put it back, or choose another --workdir"


def client_rows(path):
    return list(read_clients(path))


@pytest.mark.parametrize(
    ("name", "content", "read", "message"),
    [
        ("metrics.jsonl", ROW + b"\n" + ROW, read_rows, "line 2: it is no json"),
        ("metrics.jsonl", ROW + bytes(9), read_rows, "line 2: it is no json"),
        ("metrics.jsonl", ROW + b'{"round": "\xff"}', read_rows, "line 2: it is no json"),
        ("metrics.jsonl", ROW + b"3\n", read_rows, "line 2: it holds 3 and not an object"),
        ("metrics.jsonl", ROW + b"{}\n", read_rows, "line 2: it has no field 'round'"),
        ("metrics.jsonl", b'{"round": "a"}\n', read_rows, "round is 'a' and not int"),
        ("metrics.jsonl", b'{"round": NaN}\n', read_rows, "NaN is no number of json"),
        ("config.json", b"[]", files.read_config, rf"it holds \[\] and .*{PUT_BACK}"),
        ("config.json", b"null", files.read_config, rf"it holds None and .*{PUT_BACK}"),
        ("config.json", b"[" * 100_000, files.read_config, rf"it is no json.*{PUT_BACK}"),
        ("config.json", b"\xff\xfe", files.read_config, rf"it is no json.*{PUT_BACK}"),
        ("config.json", b'{"seed": 0}', files.read_config, "it has no field 'algorithm'"),
        ("data.json", b'{"client_names": 5}', files.read_data, r"client_names is 5 and not list"),
        ("data.json", b'{"client_names": [5]}', files.read_data, r"client_names is \[5\] and not"),
        ("data.json", b'{"task": {"headline": {"metric": 1}}}', files.read_headline, "metric is 1"),
        ("data.json", b'{"task": {"headline": {"a": 1}}}', files.read_headline, "argument 'a'"),
        ("summary.json", b'{"last": [1]}', files.read_summary, rf"last is \[1\] and .*{PUT_BACK}"),
        ("trial.json", b'{"method": "a"}', files.read_trial, rf"no field .*{PUT_BACK}"),
        ("partition.npz", b"garbage", lambda path: files.read_sizes(path, "train"), PUT_BACK),
        ("clients.csv", CSV + b"\0", client_rows, "mends its"),
        ("clients.csv", CSV + b"\xe9", client_rows, "mends its"),
        ("clients.csv", CSV + b"1,a\n", client_rows, "mends its"),
    ],
)  # fmt: skip
def test_readers(tmp_path, name, content, read, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name} cannot be read \(.*{message}"):
        read(tmp_path)


def test_lines_that_windows_ends_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(ROW.replace(b"\n", b"\r\n") * 2)
    assert read_rows(tmp_path) == [json.loads(ROW)] * 2
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert files.read_config(tmp_path) == CONFIG


def test_locks(tmp_path):
    said = []
    (tmp_path / "lock").write_bytes(b"\xff\x00\x80")
    with locked(tmp_path, said.append):
        pass
    assert said == [f"the lock of {tmp_path} was left by \\xff\x00\\x80, which is gone"]
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(WorkdirError, match=r"lock cannot be opened .* Is a directory; move or"):
        with locked(tmp_path):
            pass


def test_names_that_are_too_long(tmp_path):
    for create in (files.create, files.create_comparison):
        with pytest.raises(WorkdirError, match=r"nnn cannot be written: File name too long; choo"):
            create(tmp_path / ("n" * 300))


def test_a_run_and_a_comparison_do_not_share_a_directory(tmp_path):
    files.create_comparison(tmp_path / "both")
    (tmp_path / "both" / files.TRIALS).mkdir()
    files.create_comparison(tmp_path / "both")
    with pytest.raises(WorkdirError, match=r"both holds a comparison \(trials/\); choose another"):
        files.create(tmp_path / "both", go_on=True)
    (files.create(tmp_path / "run") / "config.json").write_text("{}")
    with pytest.raises(WorkdirError, match=r"run holds a run \(config\.json\); choose another"):
        files.create_comparison(tmp_path / "run")


def test_texts_with_bytes_that_are_no_characters(tmp_path):
    name = os.fsdecode(b"a\xe9")
    files.write_command(tmp_path, f"python -m run --workdir={name} † é")
    assert files.read_command(tmp_path) == "python -m run --workdir=a\\udce9 † é"
