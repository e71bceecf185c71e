"""Models with normalisation layers under tasks other than classification."""

import clients_with_targets as clients
import flax.linen as nn
import jax
import numpy as np
import pytest

from pflalign_jax import algorithms, federate, models, summarise, tasks
from pflalign_jax.models.networks.batch_norm import BatchNorm

ONE_DEVICE = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))


class Normed(nn.Module):
    outputs: int
    norm: str

    @nn.compact
    def __call__(self, x, mask=None):
        x = nn.Dense(8)(x)
        x = BatchNorm()(x, mask) if self.norm == "batch" else nn.LayerNorm()(x)
        return nn.Dense(self.outputs)(nn.relu(x))


def normed(outputs, norm):
    model = models.from_flax(Normed(outputs, norm), head="Dense_1")
    if norm == "layer":
        return model
    return model._replace(train_apply=model.apply, train_features=model.features)


@pytest.mark.parametrize(
    ("name", "rate", "kind", "norm"),
    [
        pytest.param("fedbn", 0.1, "binary", "batch", marks=pytest.mark.slow),
        ("fedbn", 0.1, "regression", "layer"),
        pytest.param("pflalign", 3.0, "binary", "layer", marks=pytest.mark.slow),
        ("pflalign", 3.0, "regression", "batch"),
    ],
)
def test_they_learn_and_norms_stay_with_clients(name, rate, kind, norm):
    dataset = clients.dataset(clients.numbers if kind == "regression" else clients.rare_events)
    task = tasks.regression(dataset) if kind == "regression" else tasks.binary()
    model = normed(task.num_outputs(dataset), norm)
    algorithm = getattr(algorithms, name)(model, rate, loss=task.loss(model))
    federation = federate(algorithm, model, dataset, task=task, mesh=ONE_DEVICE)
    state = federation.init(jax.random.key(0))

    def loss():
        return summarise(federation.evaluate(state))["loss/test/personal/adapted/mean"]

    before = loss()
    for _ in range(15):
        state, _ = federation.run_round(state)
    assert loss() < 0.8 * before
    first, last = (federation.personal_params(state, k) for k in (0, 6))
    layer = "BatchNorm_0" if norm == "batch" else "LayerNorm_0"
    for leaf in first[layer]:
        assert np.isfinite(first[layer][leaf]).all()
        assert np.abs(first[layer][leaf] - last[layer][leaf]).max() > 1e-4, leaf
    if name == "fedbn":  # and nothing else does
        for dense in ("Dense_0", "Dense_1"):
            np.testing.assert_array_equal(first[dense]["kernel"], last[dense]["kernel"])
        assert layer not in {k for k, v in state.server.shared.items() if jax.tree.leaves(v)}
