"""Runs: what a config says, its rounds, and the directory that they are written to."""

from pflalign_jax.runs.config import default_config
from pflalign_jax.runs.loading import Run, RunError, load_run

__all__ = ["Run", "RunError", "default_config", "load_run"]
