import numpy as np
import pytest

from pflalign_jax import tasks
from pflalign_jax.federated import ClientScores, summarise

CLASSIFICATION = tasks.classification().metrics


def scores_of(examples, accuracy, loss):
    return ClientScores(examples, {"accuracy": accuracy, "loss": loss}, CLASSIFICATION)


def test_statistics_by_hand():
    accuracy = np.arange(12) / 20
    scores = scores_of(np.arange(1, 13), accuracy, 1 - accuracy)
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
    scores = scores_of(np.array([0, 2]), np.array([np.nan, 0.5]), np.array([np.nan, 1.0]))
    found = summarise({"test/global": scores})
    assert found["accuracy/test/global/mean"] == 0.5
    assert found["loss/test/global/worst_decile"] == 1.0


def test_a_split_without_any_examples_has_no_scores():
    empty = scores_of(np.zeros(2, int), np.full(2, np.nan), np.full(2, np.nan))
    assert summarise({"validation/global": empty}) == {}


def test_a_client_without_a_value_is_left_out_and_counted():
    metrics = (tasks.metrics.auc,)
    scores = ClientScores(np.array([4, 4, 0]), {"auc": np.array([np.nan, 0.75, np.nan])}, metrics)
    found = summarise({"test/global": scores})
    assert found["auc/test/global/mean"] == 0.75
    assert found["auc/test/global/without"] == 1
    alone = ClientScores(np.array([4]), {"auc": np.array([np.nan])}, metrics)
    assert summarise({"test/global": alone}) == {"auc/test/global/without": 1}


def test_a_loss_that_is_no_number_is_not_left_out():
    scores = scores_of(np.array([4, 4]), np.array([0.5, 0.5]), np.array([np.nan, 1.0]))
    assert np.isnan(summarise({"test/global": scores})["loss/test/global/mean"])


def test_scores_without_an_accuracy_say_what_they_have():
    scores = ClientScores(np.array([4]), {"auc": np.array([0.5])}, (tasks.metrics.auc,))
    with pytest.raises(AttributeError, match=r"no 'accuracy'; they have \['auc'\]"):
        _ = scores.accuracy
