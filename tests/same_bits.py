"""Write what a set of short runs measures, to compare two versions of the code bit for bit.

A change that must change no numbers is tried so: in a checkout of the version before it, and then
in one of the version after it,

    python tests/same_bits.py DIRECTORY

and then ``python tests/same_bits.py BEFORE AFTER``, which prints a line for every run and ends with
status 1 if any number differs. Compared are all figures of ``metrics.jsonl`` but for those of time,
and all of ``clients.csv``.
"""

import json
import pathlib
import subprocess
import sys

DIGITS = ("--config=experiments/digits.py", "--config.rounds=3", "--devices=2")
PARTIAL = ("--config.cohort_size=8", "--config.dataset.num_new_clients=3")
SIX = ("pflalign", "fedavg", "ditto", "scaffold", "fedamp", "fedcp")
OTHERS = (
    *("apfl", "fedadam", "fedala", "fedavgm", "fedbabu", "feddbe", "feddyn", "fedpac", "fedper"),
    *("fedproto", "fedprox", "fedrep", "fedrod", "fedyogi", "gpfl", "lgfedavg", "local"),
    *(
        "perfedavg",
        "pfedme",
        "moon",
        "fedntd",
        "fml",
        "fedphp",
        "superfed",
        "cfl",
        "fesem",
        "fedem",
    ),
    *(
        "fedfomo",
        "apple",
        "fedcac",
        "knnper",
        "fedas",
        "fedgh",
        "pfedhn",
        "pfedbayes",
        "pfedsim",
        "ifca",
    ),
)
PLACES = ("device", "host", "disk")
MESSAGES = {
    "top_k": ("compression=top_k", "fraction=0.1", "error_feedback=True"),
    "median": ("robust=coordinate_median", "attack=sign_flip", "corrupted=2"),
    "private": ("private_clip=1.0", "noise_multiplier=0.5"),
    "noise": ("clip=1.0", "local_noise=0.01"),
}


def runs() -> dict[str, list[str]]:
    """Return the name of every run, and its arguments."""
    found = {}
    for place in PLACES:
        for name in SIX:
            fields = [f"algorithm.name={name}", f"client_state_in={place}"]
            found[f"{name}-{place}"] = [*PARTIAL, *(f"--config.{field}" for field in fields)]
    for name in OTHERS:
        found[f"{name}-everyone"] = [f"--config.algorithm.name={name}"]
    for name, fields in MESSAGES.items():
        found[f"messages-{name}"] = [*PARTIAL, *(f"--config.messages.{field}" for field in fields)]
    late = ("name=cyclic", "dropout=0.2", "slowness=0.5", "deadline=20")
    found["late"] = [*PARTIAL, *(f"--config.participation.{field}" for field in late)]
    found["chunk"] = [*PARTIAL, "--config.client_chunk=4", "--config.drop_last=True"]
    found["diagnostics"] = ["--config.diagnostics=True", "--config.compute_dtype=bfloat16"]
    return found


def write(directory: pathlib.Path) -> None:
    """Run all of `runs`, each in a folder of its name."""
    for name, arguments in runs().items():
        if not (directory / name / "summary.json").exists():
            command = ["-m", "experiments.run", *DIGITS, *arguments, "--config.checkpoint_every=0"]
            command += [f"--workdir={directory / name}"]
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def figures(path: pathlib.Path) -> tuple[list[dict[str, float]], str]:
    """Return the rows of a run's metrics without times, and the text of its ``clients.csv``."""
    timed = ("second", "peak", "device")  # in the names of what differs from run to run
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows]
    return rows, (path / "clients.csv").read_text()


def compare(before: pathlib.Path, after: pathlib.Path) -> int:
    """Print how the runs of two directories compare; return how many differ."""
    different = 0
    for name in runs():
        (rows, clients), (new_rows, new_clients) = figures(before / name), figures(after / name)
        pairs = [(k, a[k], b[k]) for a, b in zip(rows, new_rows, strict=True) for k in a.keys() & b]
        other = sorted({k for k, a, b in pairs if a != b})
        other += sorted({k for a, b in zip(rows, new_rows, strict=True) for k in a.keys() ^ b})
        same = not other and clients == new_clients
        different += not same
        print(f"{name}: {'same' if same else 'differs: ' + ', '.join([*other, 'clients.csv'])}")
    return different


if __name__ == "__main__":
    folders = [pathlib.Path(argument).absolute() for argument in sys.argv[1:]]
    if len(folders) == 1:
        write(folders[0])
    elif len(folders) == 2:
        sys.exit(compare(*folders) > 0)
    else:
        sys.exit(__doc__)
