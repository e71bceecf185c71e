"""Compare algorithms on one experiment."""
