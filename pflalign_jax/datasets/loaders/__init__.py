"""Loaders: from files to `pflalign_jax.datasets.Examples`, one module per dataset or format."""
