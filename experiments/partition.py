"""Look at the partition of an experiment's dataset, and save it.

python -m experiments.partition --config=experiments/digits.py [--workdir=DIR]
    [--config.dataset.partition=pathological ...]

Prints a table of clients and writes partition.npz (for --config.dataset.partition_file), a row per
client in partition.csv, and the charts label_counts, client_sizes and examples.

"""

import csv

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from pflalign_jax import datasets
from pflalign_jax.cli import plots
from pflalign_jax.cli.command import run_command
from pflalign_jax.cli.flags import CONFIG, WORKDIR, default_workdir, parse_config_flags
from pflalign_jax.datasets import SPLITS, FederatedDataset
from pflalign_jax.datasets.queries import client_label_counts
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files
from pflalign_jax.runs.build import build_dataset

COLUMNS = ("client", "new", *SPLITS, "labels", "label_entropy", "label_distance")
SHOWN = 12
"""Clients in the printed table; all are in the csv file."""


def table_rows(dataset: FederatedDataset) -> list[dict[str, object]]:
    """Return a row per client, new clients last.

    ``label_entropy`` is the entropy of a client's labels in bits; ``label_distance`` the total
    variation distance, in [0, 1], between them and the labels of all clients that train.
    """
    whole = client_label_counts(dataset).sum(0)
    whole = whole / whole.sum()
    rows = []
    for group, new in ((dataset, 0), (dataset.new_clients, 1)):
        if group is None:
            continue
        counts = client_label_counts(group)
        shares = counts / counts.sum(1, keepdims=True)
        # 0 log 0 = 0; adding 0 turns -0.0 into 0.0.
        entropy = (shares * -np.log2(np.where(shares > 0, shares, 1))).sum(1) + 0.0
        distance = 0.5 * np.abs(shares - whole).sum(1)
        sizes = [group.splits[split].sizes for split in SPLITS]
        labels = (counts > 0).sum(1)
        for k, name in enumerate(group.client_names.tolist()):
            own = (int(size[k]) for size in sizes)
            values = (name, new, *own, int(labels[k]), float(entropy[k]), float(distance[k]))
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def client_table(dataset: FederatedDataset, rows: list[dict[str, object]]) -> Table:
    """Return the table to print: the first clients, then smallest, median and largest of each."""
    table = Table(
        title=f"{dataset.name}: {dataset.num_clients} clients"
        + (f" and {dataset.new_clients.num_clients} new" if dataset.new_clients else "")
        + f", {dataset.num_classes} classes",
        caption="entropy of a client's labels in bits; distance: total variation between them and "
        "the labels of all, 0 = alike, 1 = disjoint",
        box=box.SIMPLE_HEAD,
    )
    for column in COLUMNS:
        title = column.replace("validation", "valid").replace("label_", "")
        table.add_column(title, justify="left" if column == "client" else "right", no_wrap=True)
    for row in rows[:SHOWN]:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    if len(rows) > SHOWN:
        table.add_row(f"... {len(rows) - SHOWN} more")
    table.add_section()
    # Counts are whole numbers, shares are not.
    for title, statistic in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
        values = (f"{statistic([row[c] for row in rows]):g}" for c in COLUMNS[2:6])
        shares = (f"{statistic([row[c] for row in rows]):.2f}" for c in COLUMNS[6:])
        table.add_row(f"[bold]{title}", "", *values, *shares)
    return table


def main(arguments: list[str]) -> None:
    """Show and save the partition of ``--config``'s dataset."""
    del arguments
    dataset = build_dataset(vocabulary.resolve(CONFIG.value))
    path = files.create(WORKDIR.value or default_workdir("partition"))
    rows = table_rows(dataset)
    datasets.save_partition(path / files.PARTITION, dataset)
    with (path / "partition.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plots.write_partition(path / files.PLOTS, dataset)
    console = Console()
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
