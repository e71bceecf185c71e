"""Opening somebody else's files runs nothing: every place that opens one, with a file that would.

Each file is a pickle that makes a directory when it is loaded, under the name and in the packing
that a place expects. Only ``--config=FILE.py`` runs code.
"""

import ast
import bz2
import gzip
import io
import os
import pathlib
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py  # noqa: F401 (it starts uname when it is imported, not when it opens a file)
import jax
import numpy as np
import pytest

from experiments import predict
from experiments.agreement.checkout import read_checkout
from experiments.certificates.cells import read as read_summary
from experiments.compare.cells import CELL
from experiments.report import certificates
from experiments.sweep.cells import Sweep
from experiments.sweep.study import open_study
from experiments.when import base, cells
from pflalign_jax.cli import loggers
from pflalign_jax.datasets import Examples, partition_examples
from pflalign_jax.datasets.loaders import (
    ag_news,
    chat,
    cifar,
    femnist,
    fl_bench,
    hugging_face,
    image_folder,
    intents,
    json_lines,
    leaf,
    mnist,
    npz,
    pfllib,
    shakespeare,
    table_files,
    tables,
    tff,
    tiny_imagenet,
    tokens,
    uci_har,
)
from pflalign_jax.deploy import app_files, node_files
from pflalign_jax.deploy.run_files import RunFiles
from pflalign_jax.errors import UserError
from pflalign_jax.federated.disk_store import DiskStore
from pflalign_jax.federated.snapshot import ClientSnapshot, Snapshot
from pflalign_jax.models.pretrained import gguf_file, loading, safetensors_folder, tokenizer
from pflalign_jax.runs import RunError, checkpoints, default_config, files, round_files
from pflalign_jax.runs.loading import load_run
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.reopening import reopen

ROOT = pathlib.Path(__file__).parents[1]

OPENERS = {
    "File", "GGUFReader", "ZipFile", "as_data_source", "from_file", "loadtxt", "memmap",
    "memory_map", "open", "open_npz", "open_stream", "pread", "preadv", "read_bytes", "read_npy",
    "read_object", "read_pixels", "read_table", "read_text", "safe_open",
}  # fmt: skip
"""Names of functions that open files."""

OWN = {
    "experiments/compare/leaderboard.py", "experiments/partition.py",  # only write
    "experiments/when/pages.py", "experiments/certificates/asking.py",
    "experiments/certificates/pages.py", "pflalign_jax/cli/output.py",
    "experiments/report/page.py",  # files of the package
    "pflalign_jax/models/language.py",  # a temporary file
    "pflalign_jax/runs/growing_files.py",  # for a checksum
}  # fmt: skip
"""Modules that open no file of anybody else."""


class Makes:
    """What loading a pickle of this does is to make a directory."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def packed(name: str, made: pathlib.Path) -> bytes:
    """Return a pickle that makes a directory, as a file of this name holds what it holds."""
    content, file = pickle.dumps(Makes(made)), io.BytesIO()
    if name.endswith((".npz", ".npy")):
        array = np.array([Makes(made)] * 3, object)
        if name.endswith(".npy"):
            np.save(file, array)
        else:
            names = ("x", "y", "client", "data", "client_names", "num_examples")
            np.savez(file, **dict.fromkeys(names, array))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", content)
    elif ".tar" in name:
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("data.pkl")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    else:
        file.write(content)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(pathlib.Path(name).suffix)
    return file.getvalue() if pack is None else pack(file.getvalue())


class Case(NamedTuple):
    """A place and the files that it opens.

    Attributes:
      module: that opens them.
      names: of the files.
      read: is given their directory.
      refused: whether it must refuse them; else it shows them or passes them over.
    """

    module: str
    names: str
    read: Callable[[pathlib.Path], Any]
    refused: bool = True


def partition(root):
    examples = Examples("mine", np.zeros((3, 2), np.float32), np.arange(3), 3)
    partition_examples(examples, partition_file=str(root / "partition.npz"))


def tfds(root):
    pytest.importorskip("tensorflow_datasets")
    femnist.load_femnist(data_dir=str(root))


def cell(root):
    place = root / "cells" / cells.folder({})
    place.mkdir(parents=True)
    (root / CELL).rename(place / CELL)
    cells.run_cell(default_config(), {}, (), 1, root)


def lock(root):
    with locked(root):
        pass


def wandb_id(root):
    class Package:
        def init(self, **options):
            raise UserError(options["id"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers.importlib, "import_module", lambda name: Package())
        with loggers.log_to(["wandb"], root, {}, []):
            pass


def arrays_of_a_checkpoint(root):
    """Load a checkpoint in which all files but those that say what it is are the hostile one."""
    hostile = (root / "hostile").read_bytes()
    server = {"w": np.zeros(3, np.float32)}
    key = jax.random.key_data(jax.random.key(0))
    clients = ClientSnapshot(np.array([[0]], np.int32), {"v": np.zeros((1, 1, 2), np.float32)})
    opened = checkpoints.open_checkpoints(root / "saved", 1)
    opened.save(Snapshot(1, key, "fry", server, clients), {}, None)
    opened.close()
    for file in (checkpoints.checkpoint_path(root / "saved", 1) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(hostile)
    shapes = jax.eval_shape(lambda: (server, {"v": np.zeros(2, np.float32)}))
    checkpoints.load_checkpoint(root / "saved", 1, shapes)


LOADERS = "pflalign_jax/datasets/loaders"
PRETRAINED = "pflalign_jax/models/pretrained"
IDX = (
    "train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte"
)
TFDS = " ".join(f"femnist/all/1.0.0/{n}" for n in ("features.json", "dataset_info.json"))

CASES = [
    Case("pflalign_jax/datasets/array_files.py", "a.npz", lambda r: npz.load_npz(r / "a.npz")),
    Case(f"{LOADERS}/npz.py", "x.npy y.npy client.npy", npz.load_npz),
    Case("pflalign_jax/datasets/partition_file.py", "partition.npz", partition),
    Case("experiments/predict.py", "a.npz", lambda r: predict.read_npz(r / "a.npz")),
    Case("experiments/when/base.py", "train.npz test.npz", base.load_arrays),
    Case("experiments/compare/cells.py", "cell.json", cell),
    Case("experiments/sweep/study.py", "study.journal",
         lambda r: open_study(Sweep(default_config(), 1, False, r), {}, {})),
    Case("experiments/certificates/cells.py", "summary.json",
         lambda r: read_summary(r / "summary.json", {})),
    Case("experiments/report/certificates.py", "certificates/certificates.csv",
         certificates.read_certificates),
    Case(f"{LOADERS}/fl_bench.py", "data.npy targets.npy",
         lambda r: fl_bench._array(r / "data.npy")),
    Case(f"{LOADERS}/plain_pickle.py", "partition.pkl", fl_bench.load_fl_bench),
    Case(f"{LOADERS}/pfllib.py", "train/0.npz test/0.npz", pfllib.load_pfllib),
    Case(f"{LOADERS}/cifar.py", "cifar-10-binary.tar.gz", cifar.load_cifar10),
    Case(f"{LOADERS}/cifar.py", "data_batch_1.bin", cifar.load_cifar10),
    Case(f"{LOADERS}/ag_news.py", "train.csv test.csv", ag_news.load_ag_news),
    Case(f"{LOADERS}/mnist.py", "gzip.zip", mnist.load_emnist),
    Case(f"{LOADERS}/idx.py", IDX, mnist.load_mnist),
    Case(f"{LOADERS}/idx.py", IDX.replace("ubyte", "ubyte.gz"), mnist.load_mnist),
    Case(f"{LOADERS}/hugging_face.py", "state.json", hugging_face.load_hugging_face),
    Case(f"{LOADERS}/hugging_face.py", "train.parquet", hugging_face.load_hugging_face),
    Case(f"{LOADERS}/images.py", "ann/0/a.png", image_folder.load_image_folder),
    Case(f"{LOADERS}/image_folder.py", "a.csv",
         lambda r: image_folder.load_image_folder(r / "a.csv")),
    Case(f"{LOADERS}/intents.py", "data_full.json",
         lambda r: intents.load_clinc150(str(r), "none")),
    Case(f"{LOADERS}/intents.py", "train.csv test.csv",
         lambda r: intents.load_banking77(str(r), "none")),
    Case(f"{LOADERS}/json_lines.py", "a.jsonl",
         lambda r: list(json_lines.read_json_lines(r / "a.jsonl", ["text"]))),
    Case(f"{LOADERS}/leaf.py", "all_data/a.json", leaf.load_leaf),
    Case(f"{LOADERS}/shakespeare.py", "a.txt", lambda r: shakespeare.load_shakespeare(r / "a.txt")),
    Case(f"{LOADERS}/table_files.py", "a.csv", lambda r: table_files.read_table(r / "a.csv")),
    Case(f"{LOADERS}/table_files.py", "a.csv.gz", lambda r: table_files.read_table(r / "a.csv.gz")),
    Case(f"{LOADERS}/tables.py", "a.parquet", tables.load_tables),
    Case(f"{LOADERS}/tff.py", "fed_emnist_train.h5 fed_emnist_test.h5", tff.load_femnist_tff),
    Case(f"{LOADERS}/tff.py", "fed_emnist.tar.bz2", tff.load_femnist_tff),
    Case(f"{LOADERS}/tiny_imagenet.py", "wnids.txt train/a val/b",
         tiny_imagenet.load_tiny_imagenet),
    Case(f"{LOADERS}/tokens.py", "tokenizer.json", tokens.read_tokeniser),
    Case(f"{LOADERS}/chat.py", "chat_template.jinja", chat.chat_of_folder),
    Case(f"{LOADERS}/chat.py", "tokenizer_config.json", chat.chat_of_folder),
    Case(f"{LOADERS}/uci_har.py", "UCI%20HAR%20Dataset.zip", uci_har.load_uci_har),
    Case(f"{LOADERS}/femnist_tfds.py", TFDS, tfds),
    Case(f"{PRETRAINED}/safetensors_folder.py", "config.json model.safetensors", loading.load),
    Case(f"{PRETRAINED}/safetensors_folder.py", "model.safetensors",
         lambda r: safetensors_folder.map_tensors(r / "model.safetensors")),
    Case(f"{PRETRAINED}/tokenizer.py", "tokenizer.json",
         lambda r: tokenizer.read_json(r / "tokenizer.json")),
    Case(f"{PRETRAINED}/gguf_file.py", "a.gguf", lambda r: gguf_file.open_gguf(r / "a.gguf")),
    Case("pflalign_jax/federated/disk_store.py", "layout.json states.bin rounds.log",
         lambda r: DiskStore({"w": np.zeros(3)}, 2, r)),
    Case("pflalign_jax/runs/checkpoints.py", "00000001/meta/metadata",
         lambda r: checkpoints.load_checkpoint(r, 1, ({}, {}))),
    Case("pflalign_jax/runs/checkpoints.py", "hostile", arrays_of_a_checkpoint),
    Case("pflalign_jax/runs/round_files.py", "clients.csv",
         lambda r: list(round_files.read_clients(r))),
    Case("pflalign_jax/runs/round_files.py", "metrics.jsonl", round_files.read_rows),
    Case("pflalign_jax/runs/files.py", "partition.npz", lambda r: files.read_sizes(r, "train")),
    Case("pflalign_jax/runs/files.py", "command.txt", files.read_command, refused=False),
    Case("pflalign_jax/runs/read_types.py", "config.json", files.read_config),
    Case("pflalign_jax/runs/lock.py", "lock", lock, refused=False),
    Case("pflalign_jax/cli/loggers.py", "wandb_id.txt", wandb_id),
    Case("pflalign_jax/deploy/app_files.py", "config.json",
         lambda r: app_files.read_config(r / "config.json")),
    Case("pflalign_jax/deploy/node_files.py", "state-1.npz",
         lambda r: node_files.read_tree(r, "state", 1, {"data": np.zeros(3)})),
    Case("pflalign_jax/deploy/node_files.py", "seen.json", node_files.read_seen),
    Case("pflalign_jax/deploy/node_files.py", "model.json", node_files.read_model),
    Case("pflalign_jax/deploy/run_files.py", "deployment.json",
         lambda r: RunFiles(r, np.array(["a"])).run_name()),
    # The checkout's own code runs later, when it is asked for; what it can do is read before.
    Case("experiments/agreement/checkout.py", "system/main.py", lambda r: read_checkout(str(r))),
]  # fmt: skip

RUNNING = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
"""What the interpreter reports when a pickle is loaded or a program is started."""

seen: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if seen is not None and event in RUNNING:
        seen.append(f"{event} {arguments}")


sys.addaudithook(_watch)  # for good: hooks cannot be taken off


@pytest.fixture
def watched():
    global seen
    seen = []
    yield seen
    seen = None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's tasks
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{pathlib.Path(c.module).stem}-{c.names}")
def test_nothing_runs(case, tmp_path, watched):
    made, root = tmp_path / "made", tmp_path / "root"
    for name in case.names.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(packed(name, made))
    if case.refused:
        with pytest.raises(UserError):
            case.read(root)
    else:
        case.read(root)
    assert not made.exists() and not watched


@pytest.mark.parametrize("section", ["algorithm", "model", "dataset", "participation", "metrics"])
def test_code_that_a_run_names_is_not_called(section, tmp_path, watched):
    config = default_config().to_dict()
    if section == "metrics":
        config["metrics"] = ["os:system"]
    else:
        config[section] |= {"name": "os:system", "command": f"mkdir {tmp_path}/made"}
    files.write_json(tmp_path / files.CONFIG, config)
    files.write_json(tmp_path / files.DATA, {"client_names": ["a"], "num_classes": 2})
    for opened in (load_run, reopen):
        with pytest.raises(RunError, match=r"config\.json names os:system.*modules=\('os',\)"):
            opened(tmp_path)
    assert not (tmp_path / "made").exists() and not watched


def test_the_file_does_run_when_it_is_loaded_as_a_pickle(tmp_path, watched):
    pickle.loads(packed("a.pkl", tmp_path / "made"))
    assert (tmp_path / "made").exists() and len(watched) == 1


def test_every_place_has_a_case():
    places = set()
    for folder in ("pflalign_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    if name in OPENERS:
                        places.add(path.relative_to(ROOT).as_posix())
    assert places - OWN == {case.module for case in CASES}
