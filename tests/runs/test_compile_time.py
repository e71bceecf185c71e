"""Time of compiling is told from that of rounds."""

import time
import types

import pytest
from jax import monitoring

from pflalign_jax.runs.compile_time import CompileTime
from pflalign_jax.runs.loop import timed_rounds


def test_what_lies_in_several_spans_counts_once():
    compiling = CompileTime()
    assert compiling.seconds == 0
    compiling.spans += [(2, 4), (6, 7), (1, 2.5), (6.2, 6.4)]
    assert compiling.seconds == pytest.approx(4)


@pytest.mark.parametrize("compiling", [0.0, 1000.0])
def test_compiling_is_not_counted_as_a_round(compiling):
    def run_rounds(states, scores_cohort):
        now = time.time()
        monitoring.record_event_time_span("/jax/core/compile/anything", now, now + compiling)
        time.sleep(0.01)
        return [(state, types.SimpleNamespace(metrics=())) for state in states]

    federation = types.SimpleNamespace(client_chunk=1, run_rounds=run_rounds)
    results, seconds = timed_rounds(federation, ["state"], False)
    assert results[0][0] == "state"
    assert seconds >= 0.01 if compiling == 0 else 0 < seconds < 0.01
