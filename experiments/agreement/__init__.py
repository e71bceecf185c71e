"""Train with this library and with another one from the same weights and batches, and compare."""
