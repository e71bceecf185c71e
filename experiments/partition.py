"""Look at the partition of an experiment's dataset, and save it.

python -m experiments.partition --config=experiments/digits.py [--workdir=DIR]
    [--config.dataset.partition=pathological ...]

Prints a table of clients and writes partition.npz (for --config.dataset.partition_file), a row per
client in partition.csv, and the charts label_counts (or targets), client_sizes and examples.

"""

import csv
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from pflalign_jax import datasets
from pflalign_jax.cli import plots
from pflalign_jax.cli.command import run_command
from pflalign_jax.cli.console import new_console
from pflalign_jax.cli.flags import CONFIG, WORKDIR, default_workdir, parse_config_flags
from pflalign_jax.datasets import SPLITS, FederatedDataset
from pflalign_jax.datasets.queries import client_label_counts, has_labels
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files
from pflalign_jax.runs.build import build_dataset
from pflalign_jax.runs.csv_cells import cell

SHOWN = 12
"""Clients in the printed table; all are in the csv file."""


Row = dict[str, Any]
"""A client's name, whether it is new, its examples of each split, and what its ``y`` are like."""


def table_rows(dataset: FederatedDataset) -> list[Row]:
    """Return a row per client, new clients last."""
    rows = []
    for group, new in ((dataset, 0), (dataset.new_clients, 1)):
        if group is None:
            continue
        sizes = {split: group.splits[split].sizes for split in SPLITS}
        columns = {**sizes, **columns_of_y(group, dataset)}
        for k, name in enumerate(group.client_names.tolist()):
            own = {title: values[k].item() for title, values in columns.items()}
            rows.append({"client": name, "new": new, **own})
    return rows


def columns_of_y(group: FederatedDataset, dataset: FederatedDataset) -> dict[str, np.ndarray]:
    """Return columns ``[K]`` that describe the ``y`` of a group of clients, in all splits.

    Of classes: ``labels``, how many of them a client has; ``label_entropy`` in bits; and
    ``label_distance``, the total variation distance, in [0, 1], between its labels and those of all
    clients of ``dataset``. Of several labels: ``labels``, how many occur, and
    ``labels_per_example``. Of numbers: ``target_mean`` and ``target_std``, over all targets.
    """
    if not has_labels(group):
        y = group.y.reshape(len(group.y), -1)
        own = [
            y[np.concatenate([group.splits[split].of_client(k) for split in SPLITS])]
            for k in range(group.num_clients)
        ]
        return {
            "target_mean": np.array([targets.mean() for targets in own]),
            "target_std": np.array([targets.std() for targets in own]),
        }
    counts = client_label_counts(group)
    labels = (counts > 0).sum(1)
    if not group.num_classes:
        examples = np.sum([group.splits[split].sizes for split in SPLITS], axis=0)
        return {"labels": labels, "labels_per_example": counts.sum(1) / examples}
    whole = client_label_counts(dataset).sum(0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # none may count in a sequence
    # 0 log 0 = 0; adding 0 turns -0.0 into 0.0.
    entropy = (shares * -np.log2(np.where(shares > 0, shares, 1))).sum(1) + 0.0
    distance = 0.5 * np.abs(shares - whole / whole.sum()).sum(1)
    return {"labels": labels, "label_entropy": entropy, "label_distance": distance}


def client_table(dataset: FederatedDataset, rows: list[Row]) -> Table:
    """Return the table to print: the first clients, then smallest, median and largest of each."""
    table = Table(
        title=f"{dataset.name}: {dataset.num_clients} clients"
        + (f" and {dataset.new_clients.num_clients} new" if dataset.new_clients else "")
        + (f", {dataset.num_classes} classes" if dataset.num_classes else ""),
        caption="entropy of a client's labels in bits; distance: total variation between them and "
        "the labels of all, 0 = alike, 1 = disjoint"
        if "label_entropy" in rows[0]
        else None,
        box=box.SIMPLE_HEAD,
    )
    columns = list(rows[0])
    for column in columns:
        title = column.replace("validation", "valid").replace("label_", "")
        table.add_column(title, justify="left" if column == "client" else "right", no_wrap=True)
    for row in rows[:SHOWN]:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    if len(rows) > SHOWN:
        table.add_row(f"... {len(rows) - SHOWN} more")
    table.add_section()
    # Counts are whole numbers, shares are not.
    for title, statistic in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
        columns_of = {c: [row[c] for row in rows] for c in columns[2:]}
        values = (
            f"{statistic(v):.2f}" if isinstance(v[0], float) else f"{statistic(v):g}"
            for v in columns_of.values()
        )
        table.add_row(Text(title, "bold"), "", *values)
    return table


def main(arguments: list[str]) -> None:
    """Show and save the partition of ``--config``'s dataset."""
    del arguments
    dataset = build_dataset(vocabulary.resolve(CONFIG.value))
    path = files.create(WORKDIR.value or default_workdir("partition"))
    rows = table_rows(dataset)
    datasets.save_partition(path / files.PARTITION, dataset)
    with (path / "partition.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "client": cell(row["client"])} for row in rows)
    plots.write_partition(path / files.PLOTS, dataset)
    console = new_console()
    console.print(client_table(dataset, rows))
    for note in dataset.notes:
        console.print(f"Note: {note}")
    console.print(f"hash {datasets.partition_hash(dataset)}", soft_wrap=True)
    console.print(
        f"Files: {path}/ with partition.npz, partition.csv, plots/. Use it with "
        f"--config.dataset.partition_file={path}/partition.npz",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main, parse_config_flags)
