"""The map of where gradient alignment pays: its data, its cells, its pages."""

import csv
import json

import numpy as np
import pytest

from experiments.compare import comparison
from experiments.compare.entries import Entry, gain
from experiments.compare.paired import Difference
from experiments.when import base, cells, pages
from pflalign_jax.datasets import DatasetError
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.headline import ACCURACY


def digits(**fields):
    options = {"num_clients": 4, "partition": "dirichlet_balanced", "alpha": 0.5}
    options |= {"validation_count": 5, "test_count": 10, "split_by": "random", "seed": 1}
    return base.dealt("digits", examples_per_client=30, **options | fields)


def test_every_client_has_as_many_examples_as_are_asked_for():
    data = digits()
    sizes = {split: owned.sizes.tolist() for split, owned in data.splits.items()}
    assert sizes == {"train": [30] * 4, "validation": [5] * 4, "test": [10] * 4}


def test_wrong_labels_are_in_training_and_validation_alone():
    clean, noisy = digits(), digits(label_noise=0.5)
    np.testing.assert_array_equal(clean.x, noisy.x)
    wrong = {split: np.mean(clean.y[owned.indices] != noisy.y[owned.indices])
             for split, owned in clean.splits.items()}  # fmt: skip
    assert wrong["test"] == 0 and 0.35 < wrong["train"] < 0.65 and 0.2 < wrong["validation"] < 0.8
    assert noisy.y.dtype == clean.y.dtype and set(noisy.y) <= set(range(10))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_noise": 1.5}, r"label_noise=1\.5"),
        ({"num_clients": 400}, "18000 examples are needed, and digits has 1797"),
    ],
)
def test_data_that_cannot_be_are_refused(fields, message):
    with pytest.raises(DatasetError, match=message):
        digits(**fields)


def test_arrays_are_read_without_clients(tmp_path):
    with pytest.raises(DatasetError, match=r"train\.npz cannot be read"):
        base.load_arrays(tmp_path)
    for split, count in (("train", 4), ("test", 2)):
        np.savez(tmp_path / f"{split}.npz", x=np.zeros((count, 3), np.float32), y=np.arange(count))
    found = base.load_arrays(tmp_path)
    assert found.x.shape == (6, 3) and found.y.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.num_classes == 4


def test_maps_share_the_cells_of_the_base_setting():
    config = base.get_config()
    for name, of_map in cells.MAPS.items():
        values = list(cells.cells_of(name, config))
        assert len(values) == len(of_map.xs) * len(of_map.ys)
        assert len({cells.folder(each) for each in values}) == len(values)
        assert values.count({}) == 1


def small():
    config = base.get_config()
    config.rounds = config.eval_every = 1
    config.cohort_size = config.dataset.num_clients = 4
    config.dataset.source, config.dataset.examples_per_client = "digits", 30
    config.dataset.validation_count, config.dataset.test_count = 5, 10
    config.model.hidden, config.compare.extensions = (4,), 0
    config.compare.grid = config.compare.grids.pflalign = (0.1,)
    return config


def test_a_cell_is_compared_once(tmp_path, monkeypatch):
    compared = []

    def compare(config, methods, seeds, root, progress, stop):
        compared.append((config.rounds, config.eval_every, methods, seeds, root.name))
        return [entry(50.0 + i, a=i, b=i + 1.0)._replace(method=m) for i, m in enumerate(methods)]

    monkeypatch.setattr(cells, "compare", compare)
    config, rivals = small(), ("local", "fedavg")
    config.compare.algorithms = ("p_alone", *rivals)
    cell = cells.run_cell(config, {"rounds": 2}, rivals, 3, tmp_path)
    assert compared == [(2, 2, ["p_alone", *rivals], 3, "rounds-2")]
    assert cell.rival == "fedavg" and cell.gains["p_alone"].mean == -2
    # What is there is not compared again, and not taken for something else.
    assert cells.run_cell(config, {"rounds": 2}, rivals, 3, tmp_path) == cell
    assert len(compared) == 1
    with pytest.raises(WorkdirError, match="was made with another config or other --seeds"):
        cells.run_cell(config, {"rounds": 2}, rivals, 2, tmp_path)
    # Nor is one of which something is gone or was changed.
    path = tmp_path / "cells" / "rounds-2" / "cell.json"
    kept = json.loads(path.read_text())
    for name, value in (("seconds", None), ("rival", 3), ("gains", {"p_alone": [1.0, "x", 2.0]}),
                        ("gains", {"p_alone": [1.0]}), ("gains", {"p_alone": 1.0})):  # fmt: skip
        changed = kept | {name: value}
        path.write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
        with pytest.raises(WorkdirError, match=r"cell\.json cannot be read \(.*put it back"):
            cells.run_cell(config, {"rounds": 2}, rivals, 3, tmp_path)


def test_every_method_fits_the_base_setting():
    config = small()
    plans, *_ = comparison.plans_of(config, list(config.compare.algorithms))
    assert set(plans) == {"pflalign", *base.VARIANTS, *base.RIVALS}
    assert plans["extended"].algorithm.server_tx == 0.9


@pytest.mark.slow
def test_a_small_cell(tmp_path):
    config = small()
    cell = cells.run_cell(config, {"batch_size": 5}, base.RIVALS, 1, tmp_path)
    assert set(cell.gains) == {"pflalign", *base.VARIANTS}
    assert all(np.isfinite(gain).all() for gain in cell.gains.values())
    assert cells.run_cell(config, {"batch_size": 5}, base.RIVALS, 1, tmp_path) == cell


def test_pages_show_every_cell(tmp_path, monkeypatch):
    maps = {"small": cells.Map("rounds", (1, 2), "cohort_size", (4, 8))}
    monkeypatch.setattr(pages, "MAPS", maps)
    lost = Difference(*[float("nan")] * 3)
    gains = [Difference(1.0, 0.5, 1.5), Difference(-1.0, -2.0, 0.5), lost, Difference(0, 0, 0)]
    found = [cells.Cell({}, "local", {"local": 90.0, "p_alone": 91.0}, {"p_alone": gain}, 60.0)
             for gain in gains]  # fmt: skip
    pages.write(tmp_path, {"small": found}, "the command")
    with (tmp_path / "when.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = [(row["x_value"], row["y_value"]) for row in rows]
    assert places == [("1", "4"), ("2", "4"), ("1", "8"), ("2", "8")]
    text = (tmp_path / "when.md").read_text()
    assert "| 1 | 4 | local 90.0 | **+1.0** (+0.5 to +1.5) |" in text
    assert "| 2 | 4 | local 90.0 | -1.0 (-2.0 to +0.5) |" in text and "| diverged |" in text
    assert "the command" in text and "took 4 minutes" in text
    (axes, _) = pages.picture({"small": found}).axes
    hatched = [patch for patch in axes.collections if patch.get_hatch()]
    assert len(hatched) == 3


def entry(validation, **clients):
    """Return what a cell reads of a comparison's entry."""
    found = Entry(**dict.fromkeys(Entry._fields))
    return found._replace(headline=ACCURACY, validation=validation, clients={0: clients}, scores={})


def test_gains_are_paired_with_their_interval():
    found = gain(entry(0.0, a=90.0, b=80.0, c=70.0), entry(0.0, a=88.0, b=78.0, c=69.0))
    # Differences 2, 2, 1: their mean is 5/3, the standard error 1/3, t of 2 degrees 4.303.
    assert found[:3] == pytest.approx((5 / 3, 5 / 3 - 4.3027 / 3, 5 / 3 + 4.3027 / 3), abs=1e-3)
    assert found.is_clear
    unclear = gain(entry(0.0, a=90.0, b=80.0), entry(0.0, a=88.0, b=82.0))
    assert unclear.mean == 0 and not unclear.is_clear
    assert not gain(entry(0.0), entry(0.0, a=1.0)).is_clear


def test_seeds_that_disagree_are_not_told_from_zero():
    """As in the leaderboard: a cell is marked by the same rule."""
    found = entry(1.0)._replace(clients={0: {"a": 9.0, "b": 9.0}, 1: {"a": 0.0, "b": 0.0}})
    rival = entry(0.0)._replace(clients={0: {"a": 0.0, "b": 0.0}, 1: {"a": 1.0, "b": 1.0}})
    named = [found._replace(method="pflalign"), rival._replace(method="local")]
    of = cells.cell_of({}, named, ("local",), 1.0).gains["pflalign"]
    assert of.low == of.high == 4.0 and not of.agree and not of.is_clear


def test_the_rival_is_chosen_on_validation():
    names = {"pflalign": 50.0, "local": 60.0, "fedavg": 70.0, "ditto": float("nan")}
    entries = [entry(v, a=1.0, b=2.0)._replace(method=name) for name, v in names.items()]
    cell = cells.cell_of({}, entries, ("local", "fedavg", "ditto"), 1.0)
    assert cell.rival == "fedavg" and set(cell.gains) == {"pflalign"}
