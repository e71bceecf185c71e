"""The experiments on language, each with a small random model and a small file, for one round."""

import importlib
import json

import numpy as np
import pytest
import small_models

import pflalign_jax as pfl
from pflalign_jax.runs import loop

WORDS = ("the", "cat", "sat", "on", "mat", "dog")


def sentence(rng, length=5):
    return " ".join(rng.choice(WORDS, length))


def write_intents(path):
    rng, lists = np.random.default_rng(0), {}
    for name, count in (("train", 60), ("val", 10), ("test", 10)):
        lists[name] = [[sentence(rng), f"intent {i % 3}"] for i in range(count)]
        lists[f"oos_{name}"] = [[sentence(rng), "oos"]]
    (path / "data_full.json").write_text(json.dumps(lists))
    return path


def write_speeches(path):
    rng = np.random.default_rng(0)
    rows = [
        {"name": name, "year": 1900 + i, "text": sentence(rng, 60)}
        for i, name in enumerate(("Adams", "Monroe", "Taft"))
    ]
    (path / "speeches.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def write_instructions(path):
    rng = np.random.default_rng(0)
    rows = [
        {"task": task, "instruction": sentence(rng, 2), "input": "", "output": rng.choice(WORDS)}
        for task in ("cats", "dogs")
        for _ in range(10)
    ]
    file = path / "tasks.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


PROMPT = {"dataset.template": "{instruction}:", "dataset.length": 20, "dataset.end_token": None}
SMALL = {
    "intents": {"dataset.out_of_scope": True, "dataset.length": 8, "dataset.num_clients": 2,
                "dataset.fraction": 1.0},
    "presidents": {"dataset.length": 8, "dataset.num_clients": 3, "dataset.fraction": 1.0,
                   "dataset.min_examples": 3, "model.adapt_layers": 2},
    "instructions": PROMPT,
    "instructions_gpu": PROMPT | {"dataset.num_clients": 2, "local_epochs": 1},
}  # fmt: skip


@pytest.mark.slow  # test_language_models.py and test_generation_in_runs.py have runs of their kind
@pytest.mark.parametrize(
    ("experiment", "write", "model"),
    [
        ("intents", write_intents, small_models.write_encoder),
        ("presidents", write_speeches, small_models.write_decoder),
        ("instructions", write_instructions, small_models.write_decoder),
        ("instructions_gpu", write_instructions, small_models.write_decoder),
    ],
)
def test_it_runs(experiment, write, model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "matmul_peak", lambda: 1e11)
    config = importlib.import_module(f"experiments.{experiment}").get_config()
    config.dataset.path = str(write(tmp_path))
    config.dataset.tokenizer = config.model.path = str(model(tmp_path / "model"))
    config.rounds = config.eval_every = 1
    config.algorithm.learning_rate = 0.01
    for name, value in SMALL[experiment].items():
        section, _, field = name.rpartition(".")
        setattr(config[section] if section else config, field, value)
    if "generate_every" in config and config.generate_every:
        config.generate_every = 1
    outcome = pfl.runs.run(config, tmp_path / "run")
    (row,) = outcome.rows
    assert np.isfinite(row["loss/train/mean"])
    if experiment.startswith("instructions"):
        assert row["generated/clients"] == 2
