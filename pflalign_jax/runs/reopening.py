"""A run's federation and its state, from its directory, to ask it for more than it wrote."""

import os
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from pflalign_jax.federated import FederationState
from pflalign_jax.runs import files
from pflalign_jax.runs.build import Experiment, build
from pflalign_jax.runs.checkpoints import hyperparams_in, load_checkpoint
from pflalign_jax.runs.files import RunError
from pflalign_jax.runs.loading import choose_round
from pflalign_jax.runs.outside_code import refuse_code
from pflalign_jax.runs.resuming import refuse_other_data


def reopen(
    workdir: str | os.PathLike, which: str | int = "last", modules: Sequence[str] = ()
) -> tuple[Experiment, FederationState]:
    """Return what a run's config describes, built again, and its state after a round.

    Unlike `pflalign_jax.runs.load` it needs the run's data, and has its federation.

    Args:
      workdir: the run's directory, finished or not; nothing in it is changed.
      which: ``"last"``, ``"best"`` (on validation) or a round that has a checkpoint.
      modules: outside the package, whose functions the run may call, as of `load`.

    Raises:
      RunError: if the directory holds no run, not this round, or client states on disk.
      WorkdirError: if the data are others than those of the run.
      CheckpointError: naming the checkpoint, if it is damaged or of another version.
    """
    workdir = pathlib.Path(workdir)
    config = ConfigDict(files.read_config(workdir))
    refuse_code(workdir, config, modules)
    if config.client_state_in == "disk":
        raise RunError(
            f"{workdir} keeps client states on disk; such runs cannot be opened again, only resumed"
        )
    chosen, _ = choose_round(workdir, which)
    names = hyperparams_in(workdir / files.CHECKPOINTS, chosen)
    experiment = build(config, tuned=[name for name in names if name in config.algorithm])
    refuse_other_data(workdir, experiment.dataset)
    files.refuse_other_weights(workdir, experiment.model)
    federation = experiment.federation
    saved, _ = load_checkpoint(workdir / files.CHECKPOINTS, chosen, federation.shapes)
    return experiment, federation.restore(saved)
