"""How long JAX compiles, so that it is not taken for training."""

import contextlib
import threading
from collections.abc import Iterator

from jax import monitoring

EVENTS = "/jax/core/compile/"
"""How JAX names what it reports of tracing, lowering and compiling a program."""


class CompileTime:
    """Seconds in which programs were compiled.

    Attributes:
      spans: begin and end of everything reported so far, in seconds. They may lie in each other:
        a function is traced while one that calls it is.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """Return how long the spans are together, what is in several of them once."""
        total, reached = 0.0, 0.0
        for begin, end in sorted(self.spans):
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total


@contextlib.contextmanager
def compile_time() -> Iterator[CompileTime]:
    """Yield the `CompileTime` of what this thread does inside.

    >>> import jax
    >>> with compile_time() as compiling:
    ...     answer = jax.jit(lambda x: 3 * x + 1)(2.0)
    >>> compiling.seconds > 0
    True
    """
    found, thread = CompileTime(), threading.get_ident()

    def listen(event: str, start_time: float, end_time: float, **kwargs: str | int) -> None:
        # Another thread that compiles does not hold this one up.
        if event.startswith(EVENTS) and threading.get_ident() == thread:
            found.spans.append((start_time, end_time))

    monitoring.register_event_time_span_listener(listen)
    try:
        yield found
    finally:
        monitoring.unregister_event_time_span_listener(listen)
