"""Features of examples that a command writes."""

import numpy as np
import pytest

from experiments import features
from pflalign_jax import datasets, models
from pflalign_jax.runs import default_config


def test_features_are_what_the_head_is_given():
    data = datasets.digits(num_clients=3, fraction=0.2)
    model = models.mlp(10, hidden=(6,))
    found = features.features_of(model, data, np.arange(40))
    # The first layer by hand: normalised pixels, weights of the same key.
    import jax

    x = (data.x[:40].astype(np.float32) - data.mean) / data.std
    params = model.init(jax.random.key(0), x[:1])
    layer = jax.tree.map(np.asarray, params["Dense_0"])
    by_hand = np.maximum(x.reshape(40, -1) @ layer["kernel"] + layer["bias"], 0)
    assert found.dtype == np.float16 and found.shape == (40, 6)
    np.testing.assert_allclose(found, by_hand, rtol=2e-3, atol=2e-3)


def test_files_are_those_of_npz(tmp_path):
    config = default_config()
    config.dataset.fraction, config.dataset.num_clients, config.model.hidden = 0.2, 3, (6,)
    features.write(config, tmp_path)
    read = datasets.npz(str(tmp_path), partition="natural", source_split=True)
    whole = datasets.digits(num_clients=3, fraction=0.2)
    assert read.x.shape == (len(whole.y), 6)
    assert sorted(read.client_names) == ["0", "1", "2"]
    sizes = dict(zip(read.client_names, read.splits["test"].sizes, strict=True))
    assert [sizes[name] for name in whole.client_names] == whole.splits["test"].sizes.tolist()


def without_head(num_classes):
    """Return a model of which only its outputs are known."""
    return models.mlp(num_classes, hidden=(4,))._replace(features=None)


def test_a_model_without_features_is_refused(tmp_path):
    config = default_config(model=f"{__name__}:without_head")
    with pytest.raises(features.FlagError, match=r"config.model.name=.* has no features"):
        features.write(config, tmp_path)
