"""Robust aggregation: servers that do not trust every message."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.federated import Algorithm, Gathered
from pflalign_jax.messages.clipping import check_norm, clipped


class Rule(NamedTuple):
    """How a server takes messages; from `coordinate_median`, `trimmed_mean` or `norm_bound`.

    Attributes:
      each: ``message -> message``, what it makes of every message as it comes.
      combine: ``Gathered -> mean message``, what stands for the mean; None: the mean itself, formed
        by an all-reduce.
    """

    each: Callable[[Any], Any] | None
    combine: Callable[[Gathered], Any] | None


def coordinate_median() -> Rule:
    """Return the median of every coordinate over clients, which count equally.

    It withstands any messages of fewer than half of the clients of a round.

    References:
      Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
      arXiv:1803.01498, option I.
    """

    def combine(inbox):
        def median(values, count):
            low, high = (count - 1) // 2, count // 2
            return (values[low] + values[high]) / 2

        return _over_sorted(inbox, median)

    return Rule(None, combine)


def trimmed_mean(share: float) -> Rule:
    """Return the mean of every coordinate without its largest and smallest values.

    Clients count equally. It withstands any messages of a share of the clients of a round.

    Args:
      share: β in [0, 0.5): of n messages ``floor(β n)`` are left out at either end.

    References:
      Yin et al., arXiv:1803.01498, option II.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"trimmed_mean: share={share!r} is not allowed; it must be in [0, 0.5)")

    def combine(inbox):
        def mean(values, count):
            trimmed = jnp.floor(share * count + 1e-4).astype(jnp.int32)
            place = jnp.arange(len(values))
            kept = (place >= trimmed) & (place < count - trimmed)
            kept = kept.reshape(-1, *[1] * (values.ndim - 1))
            total = jnp.sum(values, axis=0, where=jnp.broadcast_to(kept, values.shape))
            return total / jnp.maximum(count - 2 * trimmed, 1).astype(values.dtype)

        return _over_sorted(inbox, mean)

    return Rule(None, combine)


def norm_bound(max_norm: float) -> Rule:
    """Return the mean of messages that the server has scaled down to a norm of ``max_norm``.

    It bounds what any client can do, and does not need all messages in one place.

    References:
      Sun et al., "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, section 4.
    """
    check_norm("norm_bound", max_norm)
    return Rule(lambda message: clipped(message, max_norm), None)


def robust(algorithm: Algorithm, rule: Rule) -> Algorithm:
    """Return the algorithm with a server that takes messages by a robust rule.

    Args:
      algorithm: any whose server takes a mean, with whatever clients do to their messages.
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

    def client_update(received, client, data, key):
        output = algorithm.client_update(received, client, data, key)
        return output._replace(message=rule.each(output.message))

    def server_update(server, aggregate):
        mean = rule.combine(aggregate.value)
        return algorithm.server_update(server, aggregate._replace(value=mean))

    changes: dict[str, Any] = {}
    if rule.each is not None:
        changes["client_update"] = client_update
    if rule.combine is not None:
        changes["server_update"] = server_update
        changes["aggregation"] = algorithm.aggregation._replace(gathered=True)
    return algorithm._replace(**changes)


def _over_sorted(inbox, statistic):
    """Return ``statistic(sorted [N, ...], count)`` of every leaf; absent clients sort last."""
    present = inbox.weights > 0
    count = present.sum()

    def of(values):
        absent = ~present.reshape(-1, *[1] * (values.ndim - 1))
        absent = jnp.broadcast_to(absent, values.shape)
        return statistic(jnp.sort(jnp.where(absent, jnp.inf, values), axis=0), count)

    return jax.tree.map(of, inbox.messages)
