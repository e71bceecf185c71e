"""The tables that a benchmark prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def main_table(figures: Mapping) -> Table:
    """Return the table of one workload."""
    table = Table(
        title=f"{figures['workload']}: {figures['clients']} clients, {figures['cohort']} per "
        f"round, batch {figures['batch_size']}, on {figures['devices']} {figures['device']} "
        f"devices, {figures['client_chunk']} clients at a time",
        caption=f"matrix product peak {figures['matmul_peak_gflops']:.0f} GFLOP/s; a client step "
        f"is {1e3 * figures['gflop_per_client_step']:.3g} MFLOP; peak memory "
        f"{figures['peak_memory_gb']:.1f} GB",
    )
    titles = [
        "ms / step",
        "s / round",
        "of peak",
        "to arithmetic",
        "executed / useful",
        "to FedAvg",
    ]
    if any("tokens_per_second" in row for row in figures["contenders"].values()):
        titles.append("tokens / s")
    for column in ("", *titles):
        table.add_column(column, justify="right")
    for name, row in figures["contenders"].items():
        low, high = row["ratio_spread"]
        cells = [
            name,
            f"{row['ms_per_client_step']:.3g}",
            f"{row['seconds_per_round']:.3g}",
            f"{100 * row['fraction_of_peak']:.0f} %",
            f"{row['to_arithmetic']:.2f}x",
            f"{row.get('executed_over_useful_steps', 1):.2f}",
            f"{row['ratio']:.2f}x ({low:.2f} .. {high:.2f})",
        ]
        if "tokens_per_second" in row:
            cells.append(f"{row['tokens_per_second']:.0f}")
        table.add_row(*cells)
    return table


def field_table(figures: Mapping[str, Sequence[Mapping]]) -> Table:
    """Return what rounds of algorithms cost, from the rows of each model; it is markdown, too."""
    table = Table(box=box.MARKDOWN)
    table.add_column("algorithm", no_wrap=True)
    for model in figures:
        table.add_column(f"{model}, ms per step", justify="right")
        table.add_column(f"{model}, ms per round", justify="right")
        table.add_column(f"{model}, round over FedAvg's", justify="right")
    for rows in zip(*figures.values(), strict=True):
        name = rows[0]["algorithm"] + (" (adapters)" if rows[0]["adapters"] else "")
        cells = []
        for row in rows:
            low, high = row["ratio_spread"]
            cells.append(f"{row['ms_per_client_step']:.3g}")
            cells.append(f"{row['ms_per_round']:.3g}")
            cells.append(f"{row['ratio']:.2f} ({low:.2f} .. {high:.2f})")
        table.add_row(name, *cells)
    return table


def scaling_table(title: str, rows: Sequence[Mapping]) -> Table:
    """Return a table of rows with the same keys."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " .. ".join(f"{v:.3g}" for v in value)
    return str(value) if isinstance(value, int) else f"{value:.3g}"
