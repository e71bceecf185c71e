"""What every random draw of a federation is for: one number each, so that no two share a key.

A draw's key is ``fold_in(key of the run, purpose)``, then the round, then the client's id. So it
does not depend on the number of devices, on the order of clients, or on a run's interruptions.
"""

INIT, COHORT, LOCAL, ADAPT, STATES = range(5)
"""First parameters; who is invited; local training; the training that is only scored; first states
of the algorithm."""

GROUP, OWN_CHANCE, PHASE, AWAKE, DROPOUT, OWN_SPEED, SPEED = range(2**30, 2**30 + 7)
"""Below ``COHORT``'s key: of `pflalign_jax.federated.participation`. Its invitations are keyed by
the round alone, which stays below these numbers."""

MESSAGE = 2**30
"""Below a client's key of a round: for the transform of its message."""

SERVER_NOISE = 2**30 + 1
"""Below the seed's key: for the noise that a server adds to a private mean."""
