"""The method in float64 NumPy, one vector of coordinates, written from its recursion as stated.

Nothing here is shared with the library: P goes through alpha, the loop is a Python loop.
"""

import math
from typing import NamedTuple

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


class Memory(NamedTuple):
    """What a client keeps across rounds."""

    v: np.ndarray
    p: np.ndarray
    delta: np.ndarray
    count: int = 0


class Step(NamedTuple):
    """Everything after one local step."""

    w: np.ndarray
    m: np.ndarray
    v: np.ndarray
    p: np.ndarray
    gamma: np.ndarray


def first_memory(size):
    return Memory(np.zeros(size), np.zeros(size), np.zeros(size))


def correction_factor(correction, m, v, delta, eps):
    if correction == "probability":
        z = np.abs(m) / np.sqrt(2 * np.maximum(v - m**2, 0) + eps)
        return 0.5 - 0.5 * erf(z) * np.sign(-m * delta)
    if correction == "sign":
        return 0.5 + 0.5 * np.sign(m * delta)
    if correction == "none":
        return np.zeros_like(m)
    return np.full_like(m, correction)


def local_round(
    w,
    memory,
    gradient,
    num_steps,
    *,
    learning_rate=1.0,
    beta=0.9,
    eps=1e-12,
    precondition=True,
    correction="probability",
    realignment=True,
):
    """Run one round of one client.

    Args:
      w: the global model.
      memory: the client's `Memory`.
      gradient: function of (local model, index of the step in this round).
      num_steps: T.
      learning_rate: a number, or a function of the steps taken before, over all rounds.
      beta, eps, precondition, correction: as in the library.
      realignment: False is the variant with no direction at all.

    Returns:
      The list of T `Step`s, and the client's next `Memory`.
    """
    received = np.array(w, np.float64)
    delta = memory.delta if realignment else np.zeros_like(received)
    local = received + delta
    m, v, p = np.zeros_like(received), memory.v.copy(), memory.p.copy()
    steps = []
    for t in range(num_steps):
        g = np.asarray(gradient(local, t), np.float64)
        m = beta * m + (1 - beta) * g
        v = beta * v + (1 - beta) * g**2
        alpha = 1 - (1 - beta) * g**2 / (v + eps)
        p = alpha * p + (1 - beta) * m**2 / (v + eps)
        gamma = correction_factor(correction, m, v, delta, eps)
        count = memory.count + t
        eta = learning_rate(count) if callable(learning_rate) else learning_rate
        local = local - eta * (p if precondition else 1.0) * g - gamma * delta / num_steps
        steps.append(Step(local, m, v, p, gamma))
    return steps, Memory(v, p, local - received, memory.count + num_steps)
