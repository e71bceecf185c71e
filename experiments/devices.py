"""How many devices a run uses; to be called before JAX starts its backends."""

import os

import jax


def use_devices(count: int | None) -> None:
    """Make a CPU show one simulated device per core, or ``count`` of them.

    XLA runs a small model's step on one core at its best, so clients are spread over cores as
    they would be over accelerators. Accelerators are not affected, and an
    ``--xla_force_host_platform_device_count`` in ``XLA_FLAGS`` wins.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", count or cores)
