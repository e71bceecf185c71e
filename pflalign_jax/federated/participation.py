"""Who takes part in a round."""

import jax
import numpy as np


def sample_cohort(
    key: jax.Array, round_index: int, client_ids: np.ndarray, cohort_size: int
) -> np.ndarray:
    """Draw a uniform cohort without replacement.

    Every client draws a number from ``fold_in(fold_in(key, round), client id)``; the
    ``cohort_size`` smallest take part. So the cohort depends neither on the order in which
    clients are listed nor on devices, nor on what happened before.

    Args:
      key: the run's key for cohorts; not consumed.
      round_index: which round.
      client_ids: ``[K]`` int32.
      cohort_size: C <= K.

    Returns:
      ``[C]`` int64 positions in ``client_ids``, ascending.
    """
    draws = np.asarray(_draws(jax.random.fold_in(key, round_index), client_ids))
    bound = np.partition(draws, cohort_size - 1)[cohort_size - 1]
    few = np.flatnonzero(draws <= bound)  # the cohort, and who shares its largest draw
    return np.sort(few[np.lexsort((client_ids[few], draws[few]))[:cohort_size]])


@jax.jit
def _draws(key, client_ids):
    """Return ``[K]`` uint32, one draw for each client."""
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(client_ids)
