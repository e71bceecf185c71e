"""Runs: what a config says, its rounds, and the directory that they are written to."""

from pflalign_jax.runs.checkpoints import CheckpointError, load_checkpoint, open_checkpoints
from pflalign_jax.runs.config import default_config
from pflalign_jax.runs.config_checks import ConfigError
from pflalign_jax.runs.files import RunError, WorkdirError
from pflalign_jax.runs.loading import Run
from pflalign_jax.runs.loading import load_run as load
from pflalign_jax.runs.loop import Outcome
from pflalign_jax.runs.round_checks import DivergedError
from pflalign_jax.runs.running import run
from pflalign_jax.runs.signals import StoppedError, asked_to_stop

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "Outcome",
    "Run",
    "RunError",
    "StoppedError",
    "WorkdirError",
    "asked_to_stop",
    "default_config",
    "load",
    "load_checkpoint",
    "open_checkpoints",
    "run",
]
