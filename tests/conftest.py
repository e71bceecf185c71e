"""Tests run on 8 simulated CPU devices, under strict rank promotion, warnings as errors."""

import gc
import os
import pathlib

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of the time goes into compiling small programs. These two halve it and change no outcome.
# They are in the environment, too, for the commands that tests start.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if jax.__version__.startswith("0.10."):  # XLA stops at flags that it does not know
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

# Tracing makes many objects that live on; to look for garbage less often saves a tenth.
gc.set_threshold(100_000, 50, 100)

LONGEST = (
    "test_kills.py", "test_processes.py", "test_notebooks.py", "test_command_line.py",
    "test_contract.py", "test_package.py", "test_first_contact.py",
)  # fmt: skip
"""Files that take longest. They come first, so that no worker waits for another at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Turn warnings into errors."""
    config.addinivalue_line("filterwarnings", "error")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compile a program once per session, however many tests and commands build it."""
    place = str(tmp_path_factory.mktemp("xla"))
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", place)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        yield
    jax.config.update("jax_compilation_cache_dir", None)


MUCH = 1.5e9
"""Bytes of a worker from which on it forgets its programs after a module."""


def held_memory():
    """Return the bytes that this process holds now; infinite where that is not told."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("inf")
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Let compiled programs go where they take much: a worker that keeps all takes 4 GB."""
    from pflalign_jax.runs.hardware import release_memory

    yield
    if held_memory() < MUCH:  # after every module it would take 4 % of the time
        return
    jax.clear_caches()
    gc.collect()  # programs that circular references still hold
    release_memory()
