"""Robust aggregation: means that some harmful messages cannot move far.

In this module N is the number of rows of `Gathered`, with clients that did not answer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.federated import Aggregate, Algorithm, ClientData, ClientOutput, Gathered
from pflalign_jax.messages.clipping import check_norm, clipped


class Rule(NamedTuple):
    """How a server combines messages; from `coordinate_median`, `trimmed_mean` or `norm_bound`.

    Attributes:
      each: ``message -> message``, applied to every message when it arrives; None: unchanged.
      combine: ``Gathered -> mean message``, instead of the mean; None: the mean itself, formed by
        an all-reduce.
    """

    each: Callable[[Any], Any] | None
    combine: Callable[[Gathered], Any] | None


def coordinate_median() -> Rule:
    """Return the median of every coordinate over clients, which count equally.

    It is robust against arbitrary messages from fewer than half of a round's clients.

    References:
      Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
      arXiv:1803.01498, option I.
    """

    def median(values: jax.Array, count: jax.Array) -> jax.Array:
        low, high = (count - 1) // 2, count // 2  # the same position if the count is odd
        return (values[low] + values[high]) / 2

    def combine(gathered: Gathered) -> Any:
        return _over_sorted(gathered, median)

    return Rule(None, combine)


def trimmed_mean(share: float) -> Rule:
    """Return the mean of every coordinate without its largest and smallest values.

    Clients count equally. It is robust against arbitrary messages from a share β of a round's
    clients.

    Args:
      share: β in [0, 0.5): of n values, the ``floor(β n)`` smallest and as many of the largest are
        left out.

    References:
      Yin et al., arXiv:1803.01498, option II.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"trimmed_mean: share={share!r} is not allowed; it must be in [0, 0.5)")

    def mean(values: jax.Array, count: jax.Array) -> jax.Array:
        # Plus 1e-4, since 0.2 * 5 may be slightly below 1 in float32.
        trimmed = jnp.floor(share * count + 1e-4).astype(jnp.int32)
        position = jnp.arange(len(values))
        kept = (position >= trimmed) & (position < count - trimmed)
        kept = kept.reshape(-1, *[1] * (values.ndim - 1))
        # `where` and not a product: rows behind the count are infinite, and 0 * inf is NaN.
        total = jnp.sum(values, axis=0, where=jnp.broadcast_to(kept, values.shape))
        return total / jnp.maximum(count - 2 * trimmed, 1).astype(values.dtype)

    def combine(gathered: Gathered) -> Any:
        return _over_sorted(gathered, mean)

    return Rule(None, combine)


def norm_bound(max_norm: float) -> Rule:
    """Return the mean of messages that the server scales down to a norm of at most ``max_norm``.

    It bounds the influence of every client, and does not need all messages on one device.

    Args:
      max_norm: Euclidean norm, > 0, that the server scales every message down to.

    References:
      Sun et al., "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, section 4.
    """
    check_norm("norm_bound", max_norm)
    return Rule(lambda message: clipped(message, max_norm), None)


def robust(algorithm: Algorithm, rule: Rule) -> Algorithm:
    """Return the algorithm with a server that combines messages by a robust rule.

    Args:
      algorithm: any whose server takes a mean; clients may transform their messages.
      rule: with `coordinate_median` and `trimmed_mean` every device holds all messages of a round.

    Raises:
      ValueError: if the server takes all messages already, or a private mean.
    """
    if algorithm.aggregation.gathered:
        raise ValueError("robust: this algorithm's server takes all messages, not their mean")
    if algorithm.aggregation.divide_by is not None:
        raise ValueError(
            "robust: this algorithm's mean is private; its noise is made for a mean, and its "
            "clipping bounds every client already"
        )

    # A rule's `each` is the server's, but is applied where a message is made: the server's program
    # sees a mean only.
    def client_update(received: Any, client: Any, data: ClientData, key: jax.Array) -> ClientOutput:
        assert rule.each is not None
        output = algorithm.client_update(received, client, data, key)
        return output._replace(message=rule.each(output.message))

    def server_update(server: Any, aggregate: Aggregate) -> Any:
        assert rule.combine is not None
        mean = rule.combine(aggregate.value)
        return algorithm.server_update(server, aggregate._replace(value=mean))

    changes: dict[str, Any] = {}
    if rule.each is not None:
        changes["client_update"] = client_update
    if rule.combine is not None:
        changes["server_update"] = server_update
        changes["aggregation"] = algorithm.aggregation._replace(gathered=True)
    return algorithm._replace(**changes)


def _over_sorted(gathered: Gathered, statistic: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """Return ``statistic(sorted [N, ...], count)`` of every leaf.

    The first ``count`` rows are the values of clients that answered, in ascending order.
    """
    present = gathered.weights > 0
    count = present.sum()

    def of_leaf(values: jax.Array) -> jax.Array:
        absent = ~present.reshape(-1, *[1] * (values.ndim - 1))
        absent = jnp.broadcast_to(absent, values.shape)
        # The number of answers is known at run time only, so shapes cannot depend on it: those who
        # are absent get infinity, which is sorted to the end.
        return statistic(jnp.sort(jnp.where(absent, jnp.inf, values), axis=0), count)

    return jax.tree.map(of_leaf, gathered.messages)
