"""Train and evaluate one algorithm on one federated dataset.

python -m experiments.run --config=experiments/digits.py [--workdir=DIR]
    [--config.algorithm.name=fedavg ...]
python -m experiments.run --workdir=DIR [--config.rounds=200] [--modules=my_module]

The second goes on with the run in DIR, to its end or to more rounds; --modules has those of your
own whose functions the run names.

"""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Iterator

import jax
from absl import flags
from rich.console import Console

from pflalign_jax.cli import plots
from pflalign_jax.cli.command import FlagError, run_command, tells_how_to_go_on
from pflalign_jax.cli.console import new_console, progress, say_on, score_table
from pflalign_jax.cli.devices import (
    DEVICES,
    cache_programs,
    check_devices,
    join_processes,
    told_if_processes_die,
    use_devices,
)
from pflalign_jax.cli.flags import (
    CACHE,
    CONFIG,
    WORKDIR,
    default_workdir,
)
from pflalign_jax.cli.going_on import parse_run_flags, write_command
from pflalign_jax.cli.loggers import LOGS, check_loggers, log_to
from pflalign_jax.cli.own_modules import MODULES  # noqa: F401 (it defines --modules)
from pflalign_jax.runs import files, run
from pflalign_jax.runs.explain import overview
from pflalign_jax.runs.headline import headline_of
from pflalign_jax.runs.loop import Outcome, RunPlan
from pflalign_jax.runs.metrics import Row
from pflalign_jax.runs.processes import is_first_process
from pflalign_jax.runs.signals import asked_to_stop
from pflalign_jax.runs.value_checks import check_config

__doc__ += overview()

_LOG = flags.DEFINE_list("log", [], f"Where metrics go besides metrics.jsonl: {', '.join(LOGS)}.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a TPU pod or a SLURM job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, to join processes by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.", lower_bound=0)


@contextlib.contextmanager
def watched(console: Console, plan: RunPlan) -> Iterator[RunPlan]:
    """Yield a run that is shown and logged, and that stops when the process is asked to."""
    config, federation = plan.experiment.config, plan.experiment.federation
    rows, logs, headline = plan.start.rows, [], headline_of(federation.task)
    if plan.workdir is not None:  # one of several processes writes
        write_command(plan.workdir, sys.argv[1:])
        logs = [log_to(_LOG.value, plan.workdir, config.to_dict(), rows)]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(log) for log in logs]
        show = stack.enter_context(
            progress(config.rounds, federation.cohort_size, console, rows, headline)
        )
        stop = stack.enter_context(asked_to_stop())

        def on_round(done: int, row: Row | None) -> None:
            show(done, row)
            if row is not None:
                for write in writers:
                    write(row)

        def on_end(outcome: Outcome) -> None:
            if plan.workdir is None:
                return
            with files.named_write_errors(plan.workdir / files.PLOTS):
                plots.write_plots(plan.workdir / files.PLOTS, outcome)

        yield plan._replace(on_round=on_round, stop=stop, on_end=on_end)


def main(arguments: list[str]) -> None:
    """Run the experiment of ``--config``."""
    del arguments
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    config = CONFIG.value
    check_config(config)  # before other processes are waited for
    check_loggers(_LOG.value)
    join_processes(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    check_devices()
    if jax.process_count() > 1 and WORKDIR.value is None:
        raise FlagError("--workdir is not set; several processes need one and the same")
    path = pathlib.Path(WORKDIR.value or default_workdir(config.algorithm.name))
    first = is_first_process()
    console = new_console(quiet=not first)
    with tells_how_to_go_on(path, tell=first), told_if_processes_die(path):
        watch = functools.partial(watched, console)
        outcome = run(config, path, say=say_on(console), watch=watch)
    if not first:
        return
    console.print(score_table(outcome.summary))
    console.print(
        f"Files: {path}/ with {', '.join(files.RESULTS)}, plots/. A page of figures: "
        f"python -m experiments.report {path}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main, parse_run_flags)
