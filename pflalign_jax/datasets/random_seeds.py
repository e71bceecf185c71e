"""What a dataset's random draws are for: one number each, next to the dataset's seed.

A draw comes from ``numpy.random.default_rng([seed, purpose])``. The purposes of a federation's
draws are in `pflalign_jax.federated.random_keys`.
"""

FEATURE_SHIFT, LABEL_SHIFT, OWNER_CHOICE, NEW_CLIENTS = 1, 2, 3, 4
"""Feature shifts; label shifts; which natural owners become clients; which clients are new.

The split of client k is drawn from ``[seed, k]`` (`split_clients`), so clients 1 to 4 share a
stream with these. It stays that way because all published partitions depend on it."""
