"""Train and evaluate one algorithm on one federated dataset.

python -m experiments.run --config=experiments/digits.py [--workdir=DIR]
    [--config.algorithm.name=fedavg ...]

"""

import contextlib
import pathlib
import sys

import jax
from absl import app, flags, logging
from rich.console import Console

from pflalign_jax.cli import console as show
from pflalign_jax.cli import plots
from pflalign_jax.cli.devices import (
    DEVICES,
    cache_programs,
    join_processes,
    require_devices,
    use_devices,
)
from pflalign_jax.cli.errors import fail
from pflalign_jax.cli.flags import (
    CACHE,
    CONFIG,
    USER_ERRORS,
    WORKDIR,
    command_of,
    default_workdir,
    parse_flags,
)
from pflalign_jax.cli.loggers import LOGS, log_to, require_logs
from pflalign_jax.runs import config as vocabulary
from pflalign_jax.runs import files, loop, resuming
from pflalign_jax.runs.build import build
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.signals import StoppedError, asked_to_stop

__doc__ += vocabulary.explain()

_LOG = flags.DEFINE_list("log", [], f"Where metrics go besides metrics.jsonl: {', '.join(LOGS)}.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a TPU pod or a SLURM job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, to join processes by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Run the experiment of ``--config``."""
    del argv
    logging.set_verbosity(logging.WARNING)  # not JAX's search for accelerators
    use_devices(DEVICES.value)
    cache_programs(CACHE.value)
    config, path = CONFIG.value, None
    try:
        vocabulary.resolve(config)
        require_logs(_LOG.value)
        join_processes(
            _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
        require_devices()
        first = jax.process_index() == 0
        if jax.process_count() > 1 and WORKDIR.value is None:
            raise files.WorkdirError("--workdir is not set; several processes need one and same")
        path = pathlib.Path(WORKDIR.value or default_workdir(config.algorithm.name))
        experiment = build(config, path / "client_states" / str(jax.process_index()))
        console = Console(quiet=not first)

        def say(text):
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        with contextlib.ExitStack() as stack:
            if first:
                files.create(path, go_on=True)
                stack.enter_context(locked(path, say))
                files.write_text(path / "command.txt", command_of("run", sys.argv[1:]) + "\n")
            start = resuming.prepare(path, experiment, first, say)
            stop = stack.enter_context(asked_to_stop())
            logs, fields = _LOG.value if first else [], experiment.config.to_dict()
            write = stack.enter_context(log_to(logs, path, fields, start.rows))
            rounds, cohort = experiment.config.rounds, experiment.federation.cohort_size
            shown = stack.enter_context(show.progress(rounds, cohort, console, start.rows))

            def on_round(done, row):
                shown(done, row)
                if row:
                    write(row)

            outcome = loop.train(
                experiment,
                path if first else None,
                on_round,
                start,
                path / "checkpoints",
                stop,
            )
    except USER_ERRORS as error:
        fail(str(error))
    except StoppedError as stopped:
        if first:
            print(f"{stopped}; the same command with --workdir={path} goes on", file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt:
        print(f"interrupted; --workdir={path} goes on from its last checkpoint", file=sys.stderr)
        sys.exit(130)
    if not first:
        return
    title = f"{experiment.config.algorithm.name} on {experiment.dataset.name}"
    plots.write_plots(path / "plots", title, outcome.rows, outcome.scores, experiment.dataset)
    console.print(show.score_table(outcome.summary))
    console.print(f"Files: {path}/ with {', '.join(files.FILES)}, plots/. A page of figures: "
                  f"python -m experiments.report {path}", soft_wrap=True)  # fmt: skip


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
