"""Runs whose numbers are known, as they are on disk, for tests of reports."""

import json

import numpy as np

from pflalign_jax import tasks
from pflalign_jax.federated import ClientScores
from pflalign_jax.runs import files, round_files

NAMES = np.array(["anna", "<b>ob", "cleo", "dan"])
VERSIONS = {"jax": "0.10"}
METRICS = tasks.classification().metrics


def made(path, method, seed, accuracy, rate=0.1, rounds=4, validation=0.5, finished=True, **more):
    """Write what a run writes; its clients' accuracies grow to those given."""
    files.create(path)
    algorithm = {"name": method, "learning_rate": rate, **more.pop("algorithm", {})}
    config = {"seed": seed, "rounds": rounds, "algorithm": algorithm, "dataset": {"name": "toys"}}
    files.write_json(path / "config.json", config)
    counts = [[3, 1], [0, 4], [2, 2], [5, 0]]
    data = {"name": "toys", "partition_hash": "p1", "client_names": NAMES.tolist(),
            "label_counts": counts} | more  # fmt: skip
    files.write_json(path / "data.json", data)
    for done in range(1, rounds + 1):
        values = np.array(accuracy) * done / rounds
        named = {"accuracy": values, "loss": 1 - values}
        score = ClientScores(np.array([5, 5, 5, 5]), named, METRICS)
        scores = {"test/personal/adapted": score, "test/personal/received": score}
        round_files.append_clients(path, done, np.array(data["client_names"]), scores)
        name = "accuracy/test/personal/adapted"
        row = {f"{name}/mean": values.mean(), f"{name}/worst_decile": values.min(), "round": done,
               "accuracy/validation/personal/adapted/mean": validation, "loss/train/mean": 1 / done,
               "seconds": 2.0, "seconds_total": 2.0 * done, "bytes_up": 1_500_000,
               "bytes_down": 500_000}  # fmt: skip
        round_files.append_row(path, row)
        if method == "pflalign":
            seen = {"round": done, "P/q05": 0.1, "P/q50": 0.2, "P/q95": 0.4}
            histogram = {"gamma/histogram": [0.05] * 20} if done > 1 else {}
            round_files.append_diagnostics(path, [seen | histogram])
    if finished:
        summary = {"dataset": {"clients": 4}, "versions": VERSIONS, "last": row}
        files.write_summary(path, summary)
    return path


LOCAL, FEDAVG = (0.6, 0.7, 0.8, 0.9), (0.5, 0.8, 0.9, 0.7)
OURS = (0.9, 0.9, 0.9, 0.5)

EVIL = "<script>alert(1)</script>"


def run_with_a_best_round(path, **more):
    """Write a run of one seed whose second round was the best on validation."""
    made(path, "local", 0, (0.2, 0.8, 1.0, 1.0), **more)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row, validation in zip(rows, (0.5, 0.9, 0.6, 0.5), strict=True):
        row["accuracy/validation/personal/adapted/mean"] = validation
        row |= {f"accuracy/test/global/{of}": 0.3 for of in ("mean", "worst_decile", "min")}
        row["loss/train/mean"] += row["round"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
