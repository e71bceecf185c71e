"""Write the features of an experiment's examples by its pretrained model, for small experiments.

python -m experiments.features --config=experiments/intents.py --config.dataset.path=DIRECTORY
    --config.dataset.fraction=1.0 [--workdir=DIR]

The features are what the model's head is given before anything is trained. Writes train.npz (the
examples of training and validation) and test.npz, with x [N, F] in float16, y and client, which the
datasets npz and experiments/who_wins.py:intents read.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.cli.console import new_console
from pflalign_jax.cli.flags import CONFIG, WORKDIR, default_workdir, parse_config_flags
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.features import normalise
from pflalign_jax.models import Model
from pflalign_jax.models.frozen import as_argument, weights_of
from pflalign_jax.runs import files
from pflalign_jax.runs.build import build

BATCH = 256

PARTS = {"train": ("train", "validation"), "test": ("test",)}
"""File to the splits whose examples it has."""


def features_of(model: Model, dataset: FederatedDataset, indices: np.ndarray) -> np.ndarray:
    """Return the features ``[N, F]`` of some examples, in float16.

    Args:
      model: with `Model.features`; its parameters are those that ``model.init`` gives.
      dataset: whose examples they are.
      indices: ``[N]`` of its examples.
    """
    x = dataset.x[indices]
    if model.prepare is not None:
        x = model.prepare(x)
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)

    def features(params, batch):
        assert model.features is not None
        return model.features(params, normalise(batch, mean, std)).astype(jnp.float16)

    params = model.init(jax.random.key(0), normalise(jnp.asarray(x[:1]), mean, std))
    run = jax.jit(as_argument(model.frozen, features))
    found = [
        np.asarray(run(weights_of(model.frozen), params, x[start : start + BATCH]))
        for start in range(0, len(x), BATCH)
    ]
    return np.concatenate(found)


def write(config: ConfigDict, path: pathlib.Path) -> None:
    """Write ``train.npz`` and ``test.npz`` of an experiment to a directory.

    Raises:
      FlagError: if the model has no features.
    """
    experiment = build(config)
    dataset, model = experiment.dataset, experiment.model
    if model.features is None:
        raise FlagError(
            f"--config.model.name={config.model.name} has no features: its head is not one dense "
            "layer; choose another"
        )
    for name, splits in PARTS.items():
        parts = [dataset.splits[split] for split in splits]
        indices = np.concatenate([part.indices for part in parts])
        client = np.concatenate([np.repeat(dataset.client_names, part.sizes) for part in parts])
        x = features_of(model, dataset, indices)
        np.savez(path / f"{name}.npz", x=x, y=dataset.y[indices], client=client)


def main(arguments: list[str]) -> None:
    """Write the features of ``--config``'s dataset by its model."""
    del arguments
    path = files.create(WORKDIR.value or default_workdir("features"))
    write(CONFIG.value, path)
    new_console().print(f"Files: {path}/ with train.npz, test.npz", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, parse_config_flags)
