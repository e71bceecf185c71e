"""How fast the machine is, how much of it a run uses, and what to do where it has no room."""

import contextlib
import ctypes
import functools
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from pflalign_jax import models
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.features import are_tokens
from pflalign_jax.errors import UserError
from pflalign_jax.federated.sharding import AXIS, client_mesh, put_sharded
from pflalign_jax.models.frozen import as_argument, weights_of
from pflalign_jax.tasks import Task, classification


class MemoryExhaustedError(UserError):
    """A device has no room for a round; the message says what to make smaller."""


def release_memory() -> None:
    """Give back to the system what was freed; up to 0.1 s.

    Linux's C library keeps it for later unless it is told so: after runs of large models three
    quarters of what a process holds.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def matmul_peak(size: int | None = None, repeats: int = 5) -> float:
    """Return FLOP/s of a float32 matrix product on all devices at once, the best of repeats.

    Measured once in a process.

    Args:
      size: see `matmul`.
      repeats: how often to measure.
    """
    product, flops = matmul(size)
    # The first call compiles.
    product()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return flops / min(seconds)


def matmul(size: int | None = None) -> tuple[Callable[[], None], float]:
    """Return what does a float32 matrix product on all devices at once, and its operations.

    Args:
      size: rows and columns; None: 1024 on CPUs, 8192 elsewhere.
    """
    mesh = client_mesh()
    if size is None:
        size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    spec = jax.sharding.PartitionSpec(AXIS)
    # A square matrix for each device, so that all of them are busy at once.
    x = put_sharded(np.broadcast_to(np.float32(1), (mesh.size, size, size)), mesh)
    product = jax.jit(
        jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )

    def run() -> None:
        jax.block_until_ready(product(x))

    return run, mesh.size * 2.0 * size**3


def step_flops(
    model: models.Model, dataset: FederatedDataset, batch_size: int, task: Task | None = None
) -> float:
    """Return floating-point operations of one gradient of a batch, as XLA counts them.

    Args:
      model: that is trained.
      dataset: gives the shapes of a batch.
      batch_size: B.
      task: whose loss it is; None: of a classification.
    """
    dtype = jnp.int32 if are_tokens(dataset.x.dtype) else jnp.float32
    x, y = ((batch_size, *a.shape[1:]) for a in (dataset.x, dataset.y))
    shapes: Any = (
        jax.ShapeDtypeStruct(x, dtype),
        jax.ShapeDtypeStruct(y, dataset.y.dtype),
        jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    )
    batch = models.Batch(*shapes)
    # Only shapes: nothing is computed or held.
    params = jax.eval_shape(model.init, jax.random.key(0), batch.x)
    loss = as_argument(model.frozen, (task or classification()).loss(model))
    weights = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights_of(model.frozen)
    )
    gradient = jax.jit(jax.grad(loss, argnums=1))
    return flops_of(gradient.trace(weights, params, batch, jax.random.key(0)))


def flops_of(traced: jax.stages.Traced) -> float:
    """Return the floating-point operations of a program, as XLA counts them.

    The bodies of loops of a known length count as often as they run; XLA alone counts them once.
    """
    jaxpr = traced.jaxpr.jaxpr
    # As jit does it: what nobody uses is not computed.
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _xla_flops(traced.lower()) + _further_turns(jaxpr)


def _further_turns(jaxpr: Any) -> float:
    """Return the operations of all turns of a jaxpr's loops but the first of each."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name != "scan":
            total += sum(map(_further_turns, core.jaxprs_in_params(equation.params)))
            continue
        body, turns = equation.params["jaxpr"], equation.params["length"]
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
        once = _xla_flops(jax.jit(core.jaxpr_as_fun(body)).lower(*shapes))
        total += (turns - 1) * once + turns * _further_turns(body.jaxpr)
    return total


def _xla_flops(lowered: jax.stages.Lowered) -> float:
    cost: Any = lowered.cost_analysis()
    return cost.get("flops", 0.0)


def peak_memory() -> int:
    """Return the most bytes of host memory that this process has held."""
    # In bytes on macOS, in KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory() -> tuple[str, int]:
    """Return ``(whose, bytes)``: the most memory held so far, of a device or else of the host."""
    # CPUs have no statistics; they share the host's memory.
    found = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    on_devices = [held for held in found if held is not None]
    return ("device", max(on_devices)) if on_devices else ("host", peak_memory())


@contextlib.contextmanager
def room_on_devices(chunk: int | None) -> Iterator[None]:
    """Say what to make smaller when a device runs out of memory.

    Args:
      chunk: clients trained at a time; None: nobody is trained yet.

    Raises:
      MemoryExhaustedError: then.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # XLA has no class of its own for this, and two ways to say it.
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        advice = (
            f"pass --config.client_chunk={chunk // 2} (now {chunk}), clients trained at a time"
            if chunk is not None and chunk > 1
            else "config.client_chunk is 1 already; use a smaller model or batch, more devices, or "
            "--config.client_state_in=host"
        )
        if chunk is None:
            advice = "use a smaller model (config.model)"
        raise MemoryExhaustedError(
            f"a device is out of memory: {advice}. With the same --workdir a run that saved a "
            f"checkpoint goes on from it ({str(error).splitlines()[0]})"
        ) from error
