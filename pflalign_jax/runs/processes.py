"""What the processes of one run agree on."""

import jax
import numpy as np


def is_first_process() -> bool:
    """Tell whether this process writes the run's files; the others only compute."""
    return jax.process_index() == 0


def agree(*numbers: int) -> tuple[int, ...]:
    """Return the largest of all processes' numbers, so that all of them do the same.

    Every process has to call it, with as many numbers.
    """
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    return tuple(multihost_utils.process_allgather(np.array(numbers, np.int32)).max(0).tolist())
