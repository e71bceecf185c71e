"""The Flower app that `experiments.deploy` writes."""

import tomllib

import pytest
from in_process import small

from pflalign_jax.deploy.app_files import read_config, write_app
from pflalign_jax.deploy.packets import config_hash
from pflalign_jax.runs import ConfigError, RunError, WorkdirError
from pflalign_jax.runs.config import resolve


def test_an_app_holds_the_config_and_the_settings_of_the_run(tmp_path):
    config = small(
        adapt_learning_rate=(0.1, 1.0), model__name="mlp", model__hidden=(8, 4),
        algorithm__staleness=0.5, messages__clip=2.0,
    )  # fmt: skip
    app = write_app(tmp_path / 'My "App"', config, '/a "run"', 3)
    assert config_hash(read_config(app / "federation" / "config.json")) == config_hash(
        resolve(config)
    )
    about = tomllib.loads((app / "pyproject.toml").read_text())
    assert about["project"]["name"] == "my-app"
    assert about["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "federation.server_app:app",
        "clientapp": "federation.client_app:app",
    }
    settings = about["tool"]["flwr"]["app"]["config"]
    assert settings == {"workdir": '/a "run"', "num-clients": 3, "deadline": 600, "wait": 600}
    for module in ("server_app", "client_app"):
        compile((app / "federation" / f"{module}.py").read_text(), module, "exec")


def test_another_config_has_another_hash_unless_a_run_may_change_it():
    one = config_hash(resolve(small()))
    assert one != config_hash(resolve(small(seed=1)))
    assert one != config_hash(resolve(small(algorithm__learning_rate=2.0)))
    assert one == config_hash(resolve(small(rounds=9, checkpoint_every=5)))


def test_what_cannot_be_written_or_read_is_refused(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(WorkdirError, match="used is not empty; name a new folder"):
        write_app(tmp_path / "used", small(), "/run", 3)
    with pytest.raises(ConfigError, match=r"config\.dataset\.normalise='train' does not go"):
        write_app(tmp_path / "new", small(dataset__normalise="train"), "/run", 3)
    assert not (tmp_path / "new").exists()
    with pytest.raises(RunError, match="cannot be read"):
        read_config(tmp_path / "config.json")
