"""A run loaded from its directory predicts what the run itself scored."""

import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import pflalign_jax as pfl
from experiments import predict
from pflalign_jax.runs import loop
from pflalign_jax.runs.checkpoints import CheckpointError, checkpoint_path
from pflalign_jax.runs.config import default_config
from pflalign_jax.runs.files import RunError
from pflalign_jax.runs.reopening import reopen

ROOT = pathlib.Path(__file__).resolve().parents[2]


def trained(path, name="pflalign", place="device", rounds=4, messages=()):
    config = default_config()
    config.rounds, config.eval_every, config.cohort_size = rounds, 2, 4
    config.dataset.num_clients, config.dataset.fraction = 6, 0.15
    config.dataset.test_fraction = 0.4
    config.model.name, config.model.hidden = "mlp", (6,)
    config.algorithm.name, config.algorithm.learning_rate = name, 0.3
    config.client_state_in, config.checkpoint_every = place, 2
    config.messages.update(dict(messages))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_peak", lambda: 1e11)
        return pfl.runs.run(config, path).experiment


def scored(path, model, stage, round_index):
    with (path / "clients.csv").open() as file:
        return {
            row["client"]: (float(row["accuracy"]), float(row["loss"]))
            for row in csv.DictReader(file)
            if (row["round"], row["split"], row["model"], row["stage"])
            == (str(round_index), "test", model, stage)
        }


def examples(experiment, k):
    dataset = experiment.dataset
    owned = dataset.splits["test"]
    mine = owned.indices[owned.offsets[k] : owned.offsets[k + 1]]
    return dataset.x[mine], dataset.y[mine]


def assert_scores(path, experiment, run):
    for model, stage in (("personal", "received"), ("global", "")):
        wanted = scored(path, model, stage, run.round)
        assert wanted or model == "global"
        for k, name in enumerate(run.client_names):
            x, y = examples(experiment, k)
            if len(x) and wanted:
                outputs = run.predict(x, name if stage else None)
                found = tuple(predict.score(run.task, outputs, y).values())
                assert found == pytest.approx(wanted[name], abs=1e-5), name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, trained(path)


def test_models_score_as_in_the_run(run):
    path, experiment = run
    loaded = pfl.load_run(path)
    assert loaded.config == json.loads((path / "config.json").read_text())
    assert [row["round"] for row in loaded.metrics] == [2, 4] and loaded.round == 4
    assert loaded.metrics[-1] == json.loads((path / "summary.json").read_text())["last"]
    assert_scores(path, experiment, loaded)
    assert_scores(path, experiment, pfl.load_run(path, 2))
    best = json.loads((path / "summary.json").read_text())["best_validation"]["round"]
    assert pfl.load_run(path, "best").round == best
    x, _ = examples(experiment, 0)
    many = np.concatenate([x] * 60)  # more than one batch
    np.testing.assert_allclose(loaded.predict(many, 0)[-len(x) :], loaded.predict(x, 0), rtol=1e-5)
    assert loaded.predict(x[:0], "0").shape == (0, 10)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        pytest.param("fedcp", "device", marks=pytest.mark.slow),
        pytest.param("fedamp", "device", marks=pytest.mark.slow),
        pytest.param("pflalign", "host", marks=pytest.mark.slow),
        ("pflalign", "disk"),
    ],
)
def test_other_methods_and_places(name, place, tmp_path):
    experiment = trained(tmp_path / "run", name, place, rounds=2)
    assert_scores(tmp_path / "run", experiment, pfl.load_run(tmp_path / "run"))


SPARSE = {"clip": 1.0, "compression": "top_k", "fraction": 0.1, "error_feedback": True}
PRIVATE = {"private_clip": 1.0, "noise_multiplier": 0.1}


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(SPARSE, id="sparse", marks=pytest.mark.slow),
        pytest.param(PRIVATE, id="private", marks=pytest.mark.slow),
        pytest.param(SPARSE | PRIVATE, id="both"),
    ],
)
def test_what_messages_keep_is_not_taken_for_the_models(messages, tmp_path):
    experiment = trained(tmp_path / "run", rounds=2, messages=messages)
    assert_scores(tmp_path / "run", experiment, pfl.load_run(tmp_path / "run"))


def test_messages_and_states_on_disk_cannot_be_loaded(tmp_path):
    trained(tmp_path / "run", place="disk", rounds=2, messages=SPARSE)
    with pytest.raises(pfl.RunError, match=r"keeps client states on disk .* only resumed"):
        pfl.load_run(tmp_path / "run")


def test_an_unfinished_run_is_loaded_up_to_its_last_checkpoint(run, tmp_path):
    path = shutil.copytree(run[0], tmp_path / "run")
    (path / "summary.json").unlink()
    shutil.rmtree(checkpoint_path(path / "checkpoints", 4))
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 5')
    loaded = pfl.load_run(path)
    assert loaded.round == 2 and [row["round"] for row in loaded.metrics] == [2]


def test_what_cannot_be_loaded_is_named(run, tmp_path):
    with pytest.raises(pfl.RunError, match=r"holds no run: config\.json is missing"):
        pfl.load_run(tmp_path)
    with pytest.raises(pfl.RunError, match=r"which=3 is not possible; .* has rounds \[2, 4\]"):
        pfl.load_run(run[0], 3)
    path = shutil.copytree(run[0], tmp_path / "run")
    (checkpoint_path(path / "checkpoints", 4) / "meta" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match="00000004 is damaged"):
        pfl.load_run(path)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(pfl.RunError, match="holds no checkpoint"):
        pfl.load_run(path)
    loaded = pfl.load_run(run[0])
    with pytest.raises(pfl.RunError, match=r"client 'anna' is not in .*, which has 6: 0, 1, 2"):
        loaded.personal_params("anna")
    with pytest.raises(
        pfl.RunError, match=r"x is float32\[2, 5\]; it must be uint8 of shape \[N, 8, 8"
    ):
        loaded.predict(np.zeros((2, 5), np.float32))
    x = examples(run[1], 0)[0].astype(np.float64)
    np.testing.assert_array_equal(loaded.predict(x, 0), loaded.predict(x.astype(np.uint8), 0))
    with pytest.raises(pfl.RunError, match=r"x has 0\.5 at example 1; it must be uint8 of .* the "
                       r"models of .* take features as digits stores them"):  # fmt: skip
        loaded.predict(x + 0.5 * (np.arange(len(x)) == 1)[:, None, None, None], 0)
    assert repr(loaded) == f"Run('{run[0]}': pflalign on digits, 6 clients, after round 4)"


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.predict", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_predict_from_the_command_line(run, tmp_path):
    path, experiment = run
    k = int(np.argmax(experiment.dataset.splits["test"].sizes))
    x, y = examples(experiment, k)
    np.savez(tmp_path / "data.npz", x=x.astype(np.float64), y=y.astype(str))
    out = tmp_path / "out.csv"
    done = call(f"--run={path}", f"--client={k}", f"--data={tmp_path}/data.npz", f"--out={out}")
    assert done.returncode == 0, done.stderr
    accuracy, loss = scored(path, "personal", "received", 4)[str(k)]
    assert f"{len(x)} examples, client {k} after round 4" in done.stdout
    assert f"accuracy {100 * accuracy:.2f} %, loss {loss:.4f}" in done.stdout
    with out.open() as file:
        rows = list(csv.DictReader(file))
    right = [row["predicted"] == str(label) for row, label in zip(rows, y, strict=True)]
    assert np.mean(right) == pytest.approx(accuracy, abs=1e-5)
    assert list(rows[0]) == ["predicted", *(f"probability_{i}" for i in range(10))]
    assert sum(float(rows[0][f"probability_{i}"]) for i in range(10)) == pytest.approx(1, abs=1e-5)
    assert re.search(r"predicted: \d \d+", done.stdout)
    done = call(f"--run={path}", f"--client={k}", f"--data={tmp_path}/nothing.npz")
    assert done.returncode == 2 and "nothing.npz cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_of_strangers(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(predict.DataError, match="without Python objects"):
        predict.read_npz(path)
    np.savez(path, z=np.zeros(3))
    with pytest.raises(predict.DataError, match=r"has no array x, only \['z'\]"):
        predict.read_npz(path)
    np.savez(path, x=np.zeros((3, 2)), y=np.zeros(2, int))
    with pytest.raises(predict.DataError, match=r"y is int64\[2\], x has 3 examples"):
        predict.read_npz(path)
    path.write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(predict.DataError, match="cannot be read"):
        predict.read_npz(path)
    with pytest.raises(predict.DataError, match=r"must be labels in 0\.\.9"):
        predict.score(pfl.tasks.classification(), np.zeros((2, 10)), np.array([3, 10]))
    with pytest.raises(predict.DataError, match=r"must be labels in 0\.\.9"):
        predict.score(pfl.tasks.classification(), np.zeros((2, 10)), np.array([3, -1]))


def test_predictions_of_next_tokens_leave_out_what_does_not_count():
    outputs = np.log([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]])
    found = predict.score(pfl.tasks.next_token(), outputs, np.array([[0, -1]]))
    assert found["accuracy"] == 1 and found["perplexity"] == pytest.approx(2)


def test_a_run_is_opened_again_with_its_federation(run):
    path, experiment = run
    again, state = reopen(path)
    loaded = pfl.load_run(path)
    assert int(state.round) == loaded.round == 4
    for k in range(experiment.dataset.num_clients):
        found, wanted = again.federation.personal_params(state, k), loaded.personal_params(k)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(RunError, match="which=3 is not possible"):
        reopen(path, 3)
