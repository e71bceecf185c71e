"""Send a run's metrics to other tools, under the names that they have in metrics.jsonl."""

import contextlib
import csv
import functools
import importlib
import importlib.util
import pathlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pflalign_jax.cli.command import FlagError
from pflalign_jax.runs import files
from pflalign_jax.runs.config_checks import nearest
from pflalign_jax.runs.metrics import Row

LOGS = {"csv": None, "tensorboard": "tensorboardX", "wandb": "wandb"}
"""What there is, and the package that it needs."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuse what `log_to` could not do.

    Raises:
      FlagError: for an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in LOGS:
            raise FlagError(f"--log={name} is unknown{nearest(name, LOGS)}")
        package = LOGS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise FlagError(
                f"--log={name} needs {package}, which is not installed: pip install {package}"
            )


@contextlib.contextmanager
def log_to(
    names: Sequence[str], workdir: pathlib.Path, config: dict[str, Any], rows: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that logs a row of metrics.

    Args:
      names: of `LOGS`. ``csv``: ``metrics.csv``; ``tensorboard``: event files in ``tensorboard/``;
        ``wandb``: Weights & Biases, offline as its own settings (``WANDB_MODE``) say.
      workdir: the run's directory.
      config: as in ``config.json``.
      rows: those that the run had when it was interrupted.
    """
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_OPEN[name](workdir, config, rows)) for name in names]

        def log(row: Row) -> None:
            for write in writers:
                write(row)

        yield log


@contextlib.contextmanager
def _csv(
    workdir: pathlib.Path, config: dict[str, Any], rows: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    path = workdir / files.METRICS_CSV
    with contextlib.ExitStack() as stack:
        with files.named_write_errors(path):  # not around the yield: other errors are not its
            file = stack.enter_context(path.open("w", newline="", encoding="utf-8"))

        @functools.cache
        def writer(columns: tuple[str, ...]) -> csv.DictWriter:
            new = csv.DictWriter(file, columns)
            new.writeheader()
            return new

        def write(row: Row) -> None:
            with files.named_write_errors(path):
                writer(tuple(row)).writerow(row)
                file.flush()

        for row in rows:
            write(row)
        yield write


@contextlib.contextmanager
def _tensorboard(
    workdir: pathlib.Path, config: dict[str, Any], rows: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    package = importlib.import_module("tensorboardX")
    first = int(rows[-1]["round"]) + 1 if rows else 0  # what came after is shown no more
    with package.SummaryWriter(str(workdir / files.TENSORBOARD), purge_step=first) as writer:

        def write(row: Row) -> None:
            for name, value in row.items():
                if value is not None and name != "round":
                    writer.add_scalar(name, value, int(row["round"]))
            writer.flush()

        yield write


@contextlib.contextmanager
def _wandb(
    workdir: pathlib.Path, config: dict[str, Any], rows: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    package = importlib.import_module("wandb")
    # Kept, so that a run that goes on is the same run there.
    file = workdir / files.WANDB_ID
    if not file.exists():
        files.write_text(file, uuid.uuid4().hex[:8] + "\n")
    name = file.read_bytes().decode("utf-8", "backslashreplace").strip()
    run = package.init(
        project="pflalign", name=workdir.name, id=name, resume="allow", dir=workdir, config=config
    )
    with run:
        yield lambda row: run.log(row, step=int(row["round"]))


_OPEN = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
