"""More rounds for a run that has done all that were asked of it.

It ends as a run that had so many from the start: where its last round was evaluated only because it
was the last, it goes back before that round.
"""

import pathlib

from ml_collections import ConfigDict

from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.checkpoints import best_round, checkpoint_rounds, read_about
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.growing_files import size_at


def refuse_finished(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Refuse a directory whose run is finished, unless it is to have more rounds.

    Raises:
      WorkdirError: saying how many it has, and how it gets more.
    """
    if not files.is_finished(workdir):
        return
    diverged = files.has_diverged(files.read_summary(workdir))
    had = files.read_config(workdir).get("rounds", config.rounds)
    # A trial with more rounds than the others could no longer be compared with them.
    fixed = diverged or files.has_trial(workdir)
    can_go_on = checkpoint_rounds(workdir / files.CHECKPOINTS) and not fixed
    if can_go_on and config.rounds > had:
        return
    more = f"go on with more rounds (--config.rounds above {had}), " if can_go_on else ""
    lacks = "" if can_go_on or fixed else ", without a checkpoint to go on from"
    raise WorkdirError(
        f"workdir {workdir} holds a finished run of {had} rounds{lacks}; it is not overwritten: "
        f"{more}choose another --workdir, or move or delete that directory"
    )


def round_evaluated_as_last(workdir: pathlib.Path, config: ConfigDict) -> int | None:
    """Return the last round of a shorter run that a run of these rounds would not evaluate.

    None if there is no such round.
    """
    had = files.read_config(workdir).get("rounds")
    if had is None or had >= config.rounds:
        return None
    if had not in checkpoint_rounds(workdir / files.CHECKPOINTS):
        return None
    every = config.generate_every or config.eval_every  # the first is a multiple of the second
    return None if had % every == 0 else had


def knows_its_best(workdir: pathlib.Path, round_index: int) -> bool:
    """Tell whether the best round on validation up to a checkpoint has a checkpoint, too.

    A later one that was better has taken its place else.
    """
    directory = workdir / files.CHECKPOINTS
    size = size_at(workdir, files.METRICS, read_about(directory, round_index)["about"])
    merits = round_files.read_merits(workdir, size)
    best = best_round(merits, merits)
    return best is None or best in checkpoint_rounds(directory)
