"""What several files of tests of runs share."""

import pytest
from small_runs import go, small

from pflalign_jax.runs import loop


@pytest.fixture(scope="module")
def no_peak():
    """Do not measure the machine's peak at every start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_peak", lambda: 1e11)
        yield


@pytest.fixture(scope="module")
def alone(no_peak, tmp_path_factory):
    """The directory of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("alone")
    go(path, small())
    return path
