import numpy as np
import pytest

from pflalign_jax.federated import ClientScores, summarise


def test_statistics_by_hand():
    accuracy = np.arange(12) / 20
    scores = ClientScores(np.arange(1, 13), accuracy, 1 - accuracy)
    found = summarise({"test/personal/adapted": scores})
    name = "test/personal/adapted"
    assert found[f"accuracy/{name}/mean"] == pytest.approx(0.275)
    weights = np.arange(1, 13)
    assert found[f"accuracy/{name}/weighted"] == pytest.approx((weights * accuracy).sum() / 78)
    assert found[f"accuracy/{name}/std"] == pytest.approx(np.sqrt(143 / 12) / 20)
    assert found[f"accuracy/{name}/worst_decile"] == pytest.approx(0.025)  # 2 of 12: 0 and .05
    assert found[f"accuracy/{name}/min"] == 0
    assert found[f"loss/{name}/worst_decile"] == pytest.approx(0.975)
    assert f"loss/{name}/min" not in found


def test_clients_without_examples_do_not_count():
    scores = ClientScores(np.array([0, 2]), np.array([np.nan, 0.5]), np.array([np.nan, 1.0]))
    found = summarise({"test/global": scores})
    assert found["accuracy/test/global/mean"] == 0.5
    assert found["loss/test/global/worst_decile"] == 1.0


def test_a_split_without_any_examples_has_no_scores():
    empty = ClientScores(np.zeros(2, int), np.full(2, np.nan), np.full(2, np.nan))
    assert summarise({"validation/global": empty}) == {}
