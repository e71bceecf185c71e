"""Write a Flower app, which runs an experiment on clients' own machines.

python -m experiments.deploy new DIR --config=experiments/digits.py [--num_clients=3]
    [--workdir=RUN] [--config.algorithm.name=ditto ...]

DIR is then run by ``flwr run DIR``; docs/howto/deploy.md says how the server and the nodes are
started. --workdir is the run's directory on the server; default: DIR_run. --num_clients is how many
nodes the run has; default: config.dataset.num_clients.
"""

import pathlib

from absl import flags

from pflalign_jax.cli.command import FlagError, run_command
from pflalign_jax.cli.flags import CONFIG, WORKDIR, parse_config_flags
from pflalign_jax.deploy.app_files import write_app

_NUM_CLIENTS = flags.DEFINE_integer(
    "num_clients", None, "How many nodes the run has; default: config.dataset.num_clients.", 1
)

USAGE = "give it as: python -m experiments.deploy new DIR --config=experiments/digits.py"


def parse(argv: list[str]) -> list[str]:
    """Parse ``new DIR`` and the flags of a config; return the command's name, and these two.

    Raises:
      FlagError: for anything else.
    """
    words = [word for word in argv[1:3] if not word.startswith("-")]
    if not words and any(word.startswith("--help") for word in argv[1:]):
        return parse_config_flags(argv)
    if len(words) < 2 or words[0] != "new":
        raise FlagError(f"{' '.join(argv[1:3]) or 'nothing'!r} is not known here; {USAGE}")
    return [*parse_config_flags([argv[0], *argv[3:]]), *words]


def main(arguments: list[str]) -> None:
    """Write the app."""
    _, name = arguments
    config, folder = CONFIG.value, pathlib.Path(name)
    num_clients = _NUM_CLIENTS.value or config.dataset.num_clients
    if num_clients is None:
        raise FlagError("config.dataset.num_clients is not set; pass --num_clients=NODES")
    workdir = pathlib.Path(WORKDIR.value or f"{folder}_run").absolute()
    write_app(folder, config, workdir, num_clients)
    print(
        f"{folder}/ is a Flower app. With a SuperLink and {num_clients} SuperNodes running, start "
        f"it by:\n  flwr run {folder}\nThe run's directory is {workdir}."
    )


if __name__ == "__main__":
    run_command(main, parse)
