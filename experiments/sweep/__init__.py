"""Sweep over grids of config fields."""
