"""Send a run's metrics to other tools, under the names that they have in metrics.jsonl."""

import contextlib
import csv
import importlib
import importlib.util
import pathlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pflalign_jax.runs import files
from pflalign_jax.runs.config_checks import ConfigError, nearest

Row = dict[str, float]

LOGS = {"csv": None, "tensorboard": "tensorboardX", "wandb": "wandb"}
"""What there is, and the package that it needs."""


def require_logs(names: Sequence[str]) -> None:
    """Refuse what `log_to` could not do.

    Raises:
      ConfigError: for an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in LOGS:
            raise ConfigError(f"--log={name} is unknown{nearest(name, LOGS)}")
        package = LOGS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
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
        writers = []
        for name in names:
            writers.append(stack.enter_context(_OPEN[name](workdir, config, rows)))

        def log(row):
            for write in writers:
                write(row)

        yield log


@contextlib.contextmanager
def _csv(workdir, config, rows):
    path = workdir / "metrics.csv"
    with files.explained(path), path.open("w", newline="") as file:
        writer = None

        def write(row):
            nonlocal writer
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            file.flush()

        for row in rows:
            write(row)
        yield write


@contextlib.contextmanager
def _tensorboard(workdir, config, rows):
    package = importlib.import_module("tensorboardX")
    first = int(rows[-1]["round"]) + 1 if rows else 0  # what came after is shown no more
    with package.SummaryWriter(str(workdir / "tensorboard"), purge_step=first) as writer:

        def write(row):
            for name, value in row.items():
                if value is not None and name != "round":
                    writer.add_scalar(name, value, int(row["round"]))
            writer.flush()

        yield write


@contextlib.contextmanager
def _wandb(workdir, config, rows):
    package = importlib.import_module("wandb")
    file = workdir / "wandb_id.txt"
    if not file.exists():
        files.write_text(file, uuid.uuid4().hex[:8] + "\n")
    name = file.read_text().strip()
    run = package.init(
        project="pflalign", name=workdir.name, id=name, resume="allow", dir=workdir, config=config
    )
    with run:
        yield lambda row: run.log(row, step=int(row["round"]))


_OPEN = dict(zip(LOGS, (_csv, _tensorboard, _wandb), strict=True))
