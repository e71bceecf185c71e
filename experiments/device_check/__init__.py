"""Test and time an accelerator in ten minutes."""
