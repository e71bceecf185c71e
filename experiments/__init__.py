"""Experiments: configs, the runner, the benchmark."""
