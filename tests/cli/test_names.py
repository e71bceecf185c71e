"""Names that come from users and files are shown and written as they are."""

import csv
import io
import os
import sys

import jax
import numpy as np
import pytest

from pflalign_jax import tasks
from pflalign_jax.cli import command, plots
from pflalign_jax.cli.console import new_console, progress, say_on, score_table
from pflalign_jax.cli.devices import cache_programs
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.sources import data_directory
from pflalign_jax.federated import ClientScores
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.csv_cells import cell, text_of
from pflalign_jax.runs.headline import Headline

NAMES = ["a[/b]", "a[red]b", ":smile:", "[bold]x[/bold]", r"\[x]"]


def printed(show, **options):
    out = io.StringIO()
    show(new_console(file=out, width=300, **options))
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_terminals(name):
    row = {"round": 1, f"{name}/test/personal/adapted/mean": 0.5, "seconds": 1.0}
    summary = {
        "headline": Headline(metric=name)._asdict(),
        "last": row,
        "best_validation": row,
        "algorithm": name,
        "dataset": {"name": name},
        "chosen_by": name,
    }

    def shown(console):
        with progress(1, 1, console, headline=Headline(metric=name)) as on_round:
            on_round(1, row)

    for show in (lambda c: c.print(f"Files: {name}"), lambda c: say_on(c)(name), shown):
        assert name in printed(show)
    assert printed(lambda c: c.print(score_table(summary))).count(name) >= 3
    assert name in printed(shown, force_terminal=True)


@pytest.mark.parametrize("name", ["=1+1", "+x", "-1", "@a", "'quoted", "=", "ann", "a,\"b'"])
def test_csv_cells_are_no_formulas(tmp_path, name):
    assert text_of(cell(name)) == name and not cell(name).startswith(("=", "+", "-", "@"))
    scores = ClientScores(
        np.array([3]), {"accuracy": np.array([0.5]), "loss": np.array([1.0])},
        tasks.classification().metrics,
    )  # fmt: skip
    round_files.append_clients(tmp_path, 1, np.array([name]), {"test/global": scores})
    assert [row.client for row in round_files.read_clients(tmp_path)] == [name]
    with (tmp_path / files.CLIENTS).open(newline="", encoding="utf-8") as file:
        assert [row["client"] for row in csv.DictReader(file)] == [cell(name)]


def test_dollar_signs_are_no_formulas(tmp_path):
    figure = plots.new_figure((2, 2))
    axes = figure.subplots()
    axes.set(title=r"$\nothing$ and ${HOME}$")
    axes.set_yticks([0], ["$$"])
    plots.save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_a_terminal_that_lacks_the_characters(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(command.app, "run", lambda start, flags_parser: start(["command"]))

    def main(arguments):
        print("client é")
        new_console().print("client †")

    command.run_command(main)
    out.flush()
    assert out.buffer.getvalue().splitlines() == [rb"client \xe9", rb"client \u2020"]


def test_without_a_home(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does then
    monkeypatch.delenv("PFLALIGN_DATASETS", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        cache_programs("~/.cache/pflalign_jax")
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert "~/.cache/pflalign_jax: HOME is not set" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="HOME is not set; set it, or PFLALIGN_DATASETS"):
        data_directory("mnist")
    assert not list(tmp_path.iterdir())
