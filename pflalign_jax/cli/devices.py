"""Which devices a run uses; to be called before JAX starts its backends."""

import contextlib
import faulthandler
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from pflalign_jax.errors import UserError
from pflalign_jax.runs.checkpoints import CheckpointError
from pflalign_jax.runs.signals import StoppedError

DEVICES = flags.DEFINE_integer(
    "devices", None, "Simulated devices on a CPU; default: one per core.", lower_bound=1
)


PATIENT = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=3600",
    "--xla_cpu_collective_call_terminate_timeout_seconds=86400",
)
"""Flags of XLA: simulated devices wait this long for each other. XLA ends the process after 60
seconds else, and clients of a large model that one device has more than another take longer."""


SILENCE = 20
"""Seconds after which processes of a run take one that is silent for dead, and end. JAX's own are
100, and 300 at the end."""


class DeviceError(UserError, ValueError):
    """Processes that cannot be joined; the message names the flag and says what to do."""


def use_devices(count: int | None) -> None:
    """Make a CPU show one simulated device per core, or ``count`` of them.

    XLA runs a small model's step on one core at its best, so clients are spread over cores as
    they would be over accelerators. Accelerators are not affected, and an
    ``--xla_force_host_platform_device_count`` in ``XLA_FLAGS`` wins.

    Raises:
      DeviceError: if JAX has computed before, so that its devices are what they are.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if jax.__version__.startswith("0.10."):  # XLA stops at flags that it does not know
        more = [flag for flag in PATIENT if flag.split("=")[0] not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *more]).strip()
    # XLA would refuse both.
    if "xla_force_host_platform_device_count" not in given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        try:
            jax.config.update("jax_num_cpu_devices", count or cores)
        except RuntimeError as error:
            raise DeviceError(
                f"JAX computed before --devices={count or cores} could be set: a module that the "
                "config is, or names, does so while it is imported; put what it computes into "
                "functions"
            ) from error


def check_devices() -> None:
    """Start JAX's backends.

    Raises:
      DeviceError: if there is no accelerator of the kind that was asked for.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise DeviceError(
            f"JAX_PLATFORMS={wanted!r} asks for a device that is not here"
            f"{f' ({error})' if str(error) else ''}; unset it or set it to cpu to run without, or "
            "install the jax plugin and driver of the accelerator"
        ) from error


def join_processes(
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Join the other processes of a run, so that `jax.devices` are those of all of them.

    Args:
      distributed: join as the cluster's environment says (TPU pods, SLURM, Open MPI).
      coordinator_address: ``HOST:PORT`` of process 0, where there is no such environment.
      num_processes, process_id: how many there are, and which one this is.

    Raises:
      DeviceError: for flags that do not go together, or processes that do not come.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    # All three are given, or none: then a cluster's environment has them.
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3 and not distributed:
        return
    if missing and not distributed:
        raise DeviceError(
            f"--{missing[0]} is not set; several processes need --coordinator_address=HOST:PORT, "
            "--num_processes and --process_id, or --distributed on a TPU pod or under SLURM"
        )
    if not missing:
        assert num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise DeviceError(
                f"--process_id={process_id} is not possible; use a number in 0..{num_processes - 1}"
            )
    try:
        jax.distributed.initialize(
            **{k: v for k, v in given.items() if v is not None},
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise DeviceError(f"the processes could not be joined: {error}") from error


@contextlib.contextmanager
def told_if_processes_die(workdir: pathlib.Path) -> Iterator[None]:
    """Say how a run of several processes goes on, if this one is ended from outside.

    When another process dies, JAX aborts this one at once. So a shell says it, which waits for a
    line that comes only if the process ends by itself.

    Args:
      workdir: of the run.
    """
    if jax.process_count() == 1:
        yield
        return
    faulthandler.disable()  # where each thread was at that moment helps nobody
    message = (
        f"error: process {jax.process_index()} of {jax.process_count()} was killed, or ended as "
        "another one died or cannot be reached: the output of that one says why. Start them again, "
        f"as many or another number; the run in {workdir} goes on from its last checkpoint"
    )
    waits = ["sh", "-c", 'read line || echo "$0" >&2', message]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdin is not None
        try:
            yield
        except (UserError, StoppedError, KeyboardInterrupt) as error:
            # A connection that is gone may first be noticed by a checkpoint.
            if not isinstance(error, CheckpointError):
                shell.stdin.write(b"\n")
            raise
        shell.stdin.write(b"\n")


def cache_programs(directory: str) -> None:
    """Keep compiled programs in ``directory``, unless JAX was told another; "" keeps none.

    Programs that compile in less than half a second are not kept. A directory that cannot be
    written is not used, which is said.
    """
    if directory and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        path = os.path.expanduser(directory)
        if path.startswith("~"):  # it would be a folder of this name
            print(f"Compiled programs are not kept, {path}: HOME is not set", file=sys.stderr)
            return
        try:
            os.makedirs(path, exist_ok=True)
            # A directory that exists may still be read-only.
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            print(f"Compiled programs are not kept, {path}: {error.strerror}", file=sys.stderr)
            return
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
