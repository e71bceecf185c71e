"""Runs: what a config says, its rounds, and the directory that they are written to."""

from pflalign_jax.runs.config import default_config
from pflalign_jax.runs.files import RunError, WorkdirError
from pflalign_jax.runs.loading import Run
from pflalign_jax.runs.loading import load_run as load
from pflalign_jax.runs.loop import Outcome
from pflalign_jax.runs.running import run

__all__ = ["Outcome", "Run", "RunError", "WorkdirError", "default_config", "load", "run"]
