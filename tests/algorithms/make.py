"""Any algorithm by name, with what a runner would supply."""

import inspect

from pflalign_jax import algorithms
from pflalign_jax.models import cross_entropy


def make(name, model, rate, num_classes, num_clients, **options):
    """Return the algorithm; ``options`` it does not take are left out."""
    factory = getattr(algorithms, name)
    supplied = {
        "loss": cross_entropy(model),
        "model": model,
        "learning_rate": rate,
        "head": model.head,
        "num_classes": num_classes,
        "num_clients": num_clients,
        **options,
    }
    takes = inspect.signature(factory).parameters
    return factory(**{key: value for key, value in supplied.items() if key in takes})
