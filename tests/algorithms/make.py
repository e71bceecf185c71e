"""Any algorithm by name, with what a runner would supply."""

import inspect

from pflalign_jax import algorithms

ADAPTERS_ONLY = ("ffa_lora", "fedsa_lora", "rolora", "flora")
"""Algorithms for models with low-rank adapters."""


def make(name, model, rate, num_classes, num_clients, **options):
    """Return the algorithm; ``options`` it does not take are left out."""
    factory = getattr(algorithms, name)
    supplied = {
        "model": model,
        "learning_rate": rate,
        "num_classes": num_classes,
        "num_clients": num_clients,
        **options,
    }
    takes = inspect.signature(factory).parameters
    return factory(**{key: value for key, value in supplied.items() if key in takes})
