from types import SimpleNamespace

import pytest

from experiments import digits, own_data
from pflalign_jax.cli import flags


@pytest.mark.parametrize(
    ("experiment", "path", "begins"),
    [
        (digits, None, "runs/digits-fedavg-2"),
        (own_data, "some/wards.csv.gz", "runs/wards-fedavg-2"),
        (own_data, None, "runs/own_data-fedavg-2"),
    ],
)
def test_runs_on_own_files_are_named_after_them(monkeypatch, experiment, path, begins):
    config = experiment.get_config()
    config.dataset.path = path
    monkeypatch.setattr(flags, "CONFIG", SimpleNamespace(value=config))
    monkeypatch.setattr(flags, "config_file", lambda: experiment.__file__)
    assert flags.default_workdir("fedavg").startswith(begins)
