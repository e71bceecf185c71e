import os
import subprocess
import sys

import jax
import pytest

from pflalign_jax.cli import devices


@pytest.mark.skipif(not jax.__version__.startswith("0.10."), reason="its flags are not known")
@pytest.mark.parametrize(
    ("given", "terminate", "count"),
    [
        ("", "=86400", 3),
        ("--xla_cpu_collective_call_terminate_timeout_seconds=5", "=5", 3),
        ("--xla_force_host_platform_device_count=2", "=86400", None),
    ],
)
def test_devices_wait_for_each_other(monkeypatch, given, terminate, count):
    """XLA ended a run whose devices had one and two clients of a large model."""
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", given)
    devices.use_devices(3)
    assert updates.get("jax_num_cpu_devices") == count
    assert os.environ["XLA_FLAGS"].count(f"terminate_timeout_seconds{terminate}") == 1
    assert os.environ["XLA_FLAGS"].startswith(given)
    assert os.environ["XLA_FLAGS"].count("terminate") == 1


def test_a_module_that_computes_while_it_is_imported_is_named_as_the_cause():
    jax.devices()  # as its computing does
    with pytest.raises(devices.DeviceError, match=r"before --devices=3 could be set: a module"):
        devices.use_devices(3)


@pytest.mark.slow
def test_xla_knows_the_flags():
    code = "from pflalign_jax.cli import devices; devices.use_devices(2); devices.check_devices()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
