"""What every random draw is for: one number each, so that no two purposes share a stream.

A dataset's draw comes from ``numpy.random.default_rng([seed, purpose])``. A federation's draw has
the key ``fold_in(key of the run, purpose)``, folded with the round and then with the client id, so
that it does not depend on the number of devices, on the order of clients, or on interruptions.
"""

FEATURE_SHIFT, LABEL_SHIFT, OWNER_CHOICE, NEW_CLIENTS = 1, 2, 3, 4
"""Of a dataset: feature shifts; label shifts; which natural owners become clients; which clients
are new.

The split of client k is drawn from ``[seed, k]`` (`split_clients`), so clients 1 to 4 share a
stream with these. It stays that way because all published partitions depend on it."""

BOUND = 5
"""Of a dataset, below a client's ``[seed, k]``: which examples are kept for bounds."""

INIT, COHORT, LOCAL, ADAPT, STATES, CERTIFY = range(6)
"""Of a run: first parameters; who is invited; local training; the training that is only scored;
first states of the algorithm; posteriors of certificates."""

GROUP, OWN_CHANCE, PHASE, AWAKE, DROPOUT, OWN_SPEED, SPEED = range(2**30, 2**30 + 7)
"""Below ``COHORT``'s key: of `pflalign_jax.federated.participation`. Its invitations are keyed by
the round alone, which stays below these numbers."""

MESSAGE = 2**30
"""Below a client's key of a round: for the transform of its message."""

SERVER_NOISE = 2**30 + 1
"""Below the seed's key: for the noise that a server adds to a private mean."""
