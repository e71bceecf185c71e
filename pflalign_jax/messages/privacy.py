"""Differential privacy of clients: a private mean on the server, and its accounting."""

import functools
import math
from typing import Any, NamedTuple

import jax

from pflalign_jax.federated import Aggregate, Algorithm, ClientData, ClientOutput, mean_over
from pflalign_jax.messages.clipping import check_norm, clipped, noisy
from pflalign_jax.random_purposes import SERVER_NOISE


class ServerState(NamedTuple):
    """The algorithm's own server state, and the key of the noise, ``[2]`` uint32, never sent.

    The key's data and not a key: checkpoints hold arrays of numbers.
    """

    own: Any
    key: jax.Array


def private_mean(
    algorithm: Algorithm,
    clip_norm: float,
    noise_multiplier: float,
    *,
    cohort_size: int,
    seed: int = 0,
) -> Algorithm:
    """Return the algorithm with a differentially private mean of messages (central model).

    Every message is clipped to ``clip_norm`` (C), clients count equally, the sum is divided by the
    fixed ``cohort_size``, however many clients answer, and Gaussian noise of standard deviation
    ``noise_multiplier * C / cohort_size`` is added to every coordinate. `central_epsilon` gives the
    privacy of it. Only messages are protected: training metrics and counts are not.

    Args:
      algorithm: any whose server takes a mean.
      clip_norm: C > 0, Euclidean norm that every message is scaled down to for a differentially
        private mean.
      noise_multiplier: z >= 0: the noise on the sum of messages has the standard deviation
        ``z C``; 0 only clips.
      cohort_size: clients per round that are expected to answer.
      seed: of the noise.

    References:
      McMahan et al., "Learning Differentially Private Recurrent Language Models",
      arXiv:1710.06963, Algorithm 1 with the fixed-denominator estimator.
    """
    check_norm("private_mean", clip_norm)
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(
            f"private_mean: noise_multiplier={noise_multiplier!r} is not allowed; it must be "
            "finite and >= 0"
        )
    if cohort_size < 1:
        raise ValueError(f"private_mean: cohort_size={cohort_size!r} is not allowed; use >= 1")
    if algorithm.aggregation.gathered:
        raise ValueError("private_mean: this algorithm's server takes all messages, not their mean")

    def init(params: Any, key: jax.Array) -> tuple[ServerState, Any]:
        server, client = algorithm.init(params, key)
        noise_key = jax.random.fold_in(jax.random.key(seed), SERVER_NOISE)
        return ServerState(server, jax.random.key_data(noise_key)), client

    def client_update(received: Any, client: Any, data: ClientData, key: jax.Array) -> ClientOutput:
        output = algorithm.client_update(received, client, data, key)
        return output._replace(message=clipped(output.message, clip_norm))

    def server_update(server: ServerState, aggregate: Aggregate) -> ServerState:
        key, draw = jax.random.split(jax.random.wrap_key_data(server.key))
        # One client moves the sum by up to C, and so the mean by up to C / cohort_size.
        std = noise_multiplier * clip_norm / cohort_size
        if noise_multiplier:
            aggregate = aggregate._replace(value=noisy(aggregate.value, std, draw))
        own = algorithm.server_update(server.own, aggregate)
        return ServerState(own, jax.random.key_data(key))

    def broadcast(server: ServerState) -> Any:
        return algorithm.broadcast(server.own)  # clients must not see the key of the noise

    def between_rounds(server: ServerState) -> ServerState:
        assert algorithm.between_rounds is not None
        return server._replace(own=algorithm.between_rounds(server.own))

    return algorithm._replace(
        init=init,
        client_update=client_update,
        server_update=server_update,
        broadcast=broadcast,
        aggregation=mean_over(cohort_size)._replace(
            message_bytes=algorithm.aggregation.message_bytes
        ),
        between_rounds=algorithm.between_rounds and between_rounds,
    )


def central_epsilon(
    noise_multiplier: float, rounds: int, *, invited: int, num_clients: int, delta: float
) -> float:
    """Return ε of ``rounds`` rounds of `private_mean`, at δ.

    Neighbouring federations differ in one client's data (replace one), so their sums of clipped
    messages differ by up to 2 C. The bound is the lower of two: Rényi accounting of the Gaussian
    mechanism on a uniform sample without replacement, and the same without sampling.

    Args:
      noise_multiplier: z; 0 gives infinity.
      rounds: number of rounds so far.
      invited: clients invited per round, drawn uniformly; ``num_clients`` if they are not.
      num_clients: K.
      delta: δ in (0, 1); with δ above 1 / K the bound means little.

    Raises:
      ImportError: without the package ``dp-accounting``.

    References:
      Wang et al., "Subsampled Rényi Differential Privacy and Analytical Moments Accountant",
      arXiv:1808.00087, Theorem 27, in ``dp_accounting.rdp``.
    """
    _check_delta(delta)
    noise = noise_multiplier / 2  # the standard deviation z C over the sensitivity 2 C
    return min(_epsilon(noise, rounds, n, num_clients, delta) for n in (invited, num_clients))


def local_epsilon(std: float, clip_norm: float, messages: int, delta: float) -> float:
    """Return ε, at δ, of one client's messages under ``chain(clip, ..., gaussian_noise)``.

    It protects against the server, too. Sampling of clients does not lower it, since the server
    knows who answered.

    Args:
      std: standard deviation of the noise on every coordinate; 0 gives infinity.
      clip_norm: C.
      messages: number of messages that the client has sent.
      delta: δ in (0, 1).

    Raises:
      ImportError: without the package ``dp-accounting``.
    """
    _check_delta(delta)
    return _epsilon(std / (2 * clip_norm), messages, 1, 1, delta)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r} is not allowed; it must be in (0, 1)")


def _epsilon(noise: float, rounds: int, sample: int, population: int, delta: float) -> float:
    """Return ε of ``rounds`` rounds; ``noise`` is the standard deviation over the sensitivity."""
    if noise == 0 and rounds:
        return math.inf
    if not rounds:
        return 0.0
    # Rényi divergences of rounds add up.
    orders, divergence = _divergence(noise, sample, population)
    return float(_accounting().rdp.compute_epsilon(orders, rounds * divergence, delta)[0])


@functools.lru_cache  # a run asks with the same numbers after every round, and it takes a while
def _divergence(noise: float, sample: int, population: int) -> tuple[Any, Any]:
    """Return the orders and the Rényi divergences of one round."""
    dp = _accounting()
    accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.GaussianDpEvent(noise)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(population, sample, event))
    return accountant.orders, accountant.rdp


def _accounting() -> Any:
    """Return the module ``dp_accounting``, which is optional."""
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "accounting of differential privacy needs the package dp-accounting; install it with "
            "pip install 'pflalign-jax[dp]'"
        ) from error
    return dp_accounting
