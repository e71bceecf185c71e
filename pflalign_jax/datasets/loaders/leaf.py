"""LEAF's json format: users with their examples, in folders train and test."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.characters import CHARACTERS
from pflalign_jax.datasets.loaders.labels import mapped_labels

ADVICE = (
    "LEAF's data are a folder with train/*.json and test/*.json (or all_data/*.json), each file "
    "with 'users', 'num_samples' and 'user_data'"
)


class User(NamedTuple):
    """One user's examples in one file, as json has them."""

    name: str
    x: list[Any]
    y: list[Any]
    file: pathlib.Path


def load_leaf(path: str, shape: tuple[int, ...] | None = None) -> Examples:
    """Read any LEAF dataset whose examples are vectors of numbers.

    Users without training examples are left out, and a note says how many. Images whose values are
    all multiples of 1/255 in [0, 1] are stored as uint8. Labels may be whole numbers in floating
    point, as FedProx's generator writes them.

    Args:
      path: a folder with ``train/*.json`` and ``test/*.json``, or with ``all_data/*.json``, which
        has no split; or a folder whose subfolder ``data`` has them.
      shape: shape of one example, e.g. ``(28, 28, 1)``; None: as in the file.

    Raises:
      DatasetError: naming the file and the user, if something is missing or damaged, or does not
        fit together. Values are checked where examples are partitioned.
    """
    x, y, owner, split, notes = read_users(path, lambda user: _numbers(user, shape))
    found = mapped_labels(y, path)
    name = pathlib.Path(path).resolve().name
    examples = Examples(name, x, found.y, found.num_classes, owner, split, source=path)
    return examples._replace(notes=(*notes, *found.notes), class_names=found.class_names)


def load_femnist_leaf(path: str, variant: str = "all") -> Examples:
    """Read FEMNIST as LEAF's preprocessing writes it: 28x28, white paper, labels 0..61.

    Args:
      path: see `load_leaf`.
      variant: ``"all"``, or ``"digits"``, the labels 0..9 only.

    Raises:
      DatasetError: as `load_leaf`, or for labels above 61.
    """
    x, y, owner, split, notes = read_users(path, lambda user: _numbers(user, (28, 28, 1)))
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() > 61:
        labels = f"up to {y.max()}" if y.dtype.kind in "iu" else f"like {y[0].item()!r}"
        raise DatasetError(f"femnist: {path} has labels {labels}; FEMNIST's are the integers 0..61")
    examples = Examples(
        "femnist", x, y.astype(np.int32), 62, owner, split, notes=tuple(notes), source=path,
        class_names=CHARACTERS,
    )  # fmt: skip
    return only_digits(examples) if variant == "digits" else examples


def only_digits(examples: Examples) -> Examples:
    """Return the examples with labels 0..9, of users who have such examples to train on.

    Users without them are left out, and a note says how many.

    Raises:
      DatasetError: if no user has any.
    """
    assert examples.owner is not None  # FEMNIST's examples have users
    kept = examples.y < 10
    if examples.split is not None:
        trained = np.unique(examples.owner[kept & (examples.split == "train")])
        kept &= np.isin(examples.owner, trained)
    if not kept.any():
        raise DatasetError(f"{examples.name}: no user has digits, labels 0..9, to train on")
    left_out = len(np.setdiff1d(examples.owner, examples.owner[kept]))
    note = (f"{left_out} users without digits to train on are left out.",) if left_out else ()
    return examples._replace(
        x=examples.x[kept],
        y=examples.y[kept],
        owner=examples.owner[kept],
        split=None if examples.split is None else examples.split[kept],
        num_classes=10,
        class_names=examples.class_names and examples.class_names[:10],
        notes=(*examples.notes, *note),
    )


def read_users(
    path: str, convert: Callable[[User], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, list[str]]:
    """Return ``x``, ``y``, ``owner``, ``split`` (None without one) and notes of a LEAF folder.

    Args:
      path: see `load_leaf`.
      convert: from a user to arrays ``x`` ``[n, ...]`` and ``y`` ``[n, ...]``.

    Raises:
      DatasetError: naming the file and the user.
    """
    files = _files(pathlib.Path(path))
    xs: list[np.ndarray] = []
    ys, owners, splits, empty = [], [], [], set()
    for split_name, user in _users_by_split(files):
        if not user.x:
            empty.add(user.name)
            continue
        x, y = convert(user)
        if xs and x.shape[1:] != xs[0].shape[1:]:
            raise DatasetError(
                f"{user.file}: user {user.name!r} has examples of shape {x.shape[1:]}, others of "
                f"{xs[0].shape[1:]}; they must be equal"
            )
        xs.append(x)
        ys.append(y)
        owners.append(np.full(len(x), user.name))
        splits.append(np.full(len(x), split_name or ""))
    if not xs:
        raise DatasetError(f"{path} has no examples; {ADVICE}")
    # Images that one user has in steps of 1/255 and another has not: all as float32 in [0, 1].
    if len({x.dtype for x in xs}) > 1:
        xs = [x.astype(np.float32) / 255 if x.dtype == np.uint8 else x for x in xs]
    x, y, owner, split = (np.concatenate(arrays) for arrays in (xs, ys, owners, splits))
    notes = []
    empty -= set(owner.tolist())  # a user may be empty in one split and not in the other
    if empty:
        notes.append(f"{len(empty)} users without examples are left out.")
    if None in files:
        return x, y, owner, None, notes
    untrained = np.setdiff1d(owner, owner[split == "train"])
    if len(untrained):
        notes.append(f"{len(untrained)} users without training examples are left out.")
        kept = ~np.isin(owner, untrained)
        x, y, owner, split = x[kept], y[kept], owner[kept], split[kept]
    return x, y, owner, split, notes


def _users_by_split(
    files: Mapping[str | None, Sequence[pathlib.Path]],
) -> Iterator[tuple[str | None, User]]:
    """Yield the split and every user of all files; a user must be in one file of a split only."""
    for split, paths in files.items():
        file_of: dict[str, pathlib.Path] = {}
        for file in paths:
            for user in _users(file):
                if user.name in file_of:
                    raise DatasetError(
                        f"{file}: user {user.name!r} is also in {file_of[user.name].name}; the "
                        "files overlap, keep one of them"
                    )
                file_of[user.name] = file
                yield split, user


def is_leaf(path: pathlib.Path) -> bool:
    """Tell whether a folder looks like LEAF's."""
    return any(_find_files(path).values())


def _find_files(path: pathlib.Path) -> dict[str | None, list[pathlib.Path]]:
    """Return split to json files; the key None is for files without a split."""
    for folder in (path, path / "data"):
        files: dict[str | None, list[pathlib.Path]] = {
            split: sorted((folder / split).glob("*.json")) for split in ("train", "test")
        }
        if any(files.values()):
            return files
        whole = sorted((folder / "all_data").glob("*.json"))
        if whole:
            return {None: whole}
    return {}


def _files(path: pathlib.Path) -> dict[str | None, list[pathlib.Path]]:
    """Return split to json files; raise an error if there are none."""
    if not path.is_dir():
        raise DatasetError(f"{path} is not a directory; {ADVICE}")
    files = _find_files(path)
    if not files:
        raise DatasetError(f"{path} has no json file in train, test or all_data; {ADVICE}")
    for split, paths in files.items():
        if not paths:
            raise DatasetError(f"{path}: {split} has no json file; {ADVICE}")
    return files


def _users(file: pathlib.Path) -> Iterator[User]:
    """Yield the users of a json file, checked."""
    try:
        with file.open(encoding="utf8") as text:
            content = json.load(text)
        names, counts, data = (content[k] for k in ("users", "num_samples", "user_data"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{file} cannot be read as json ({error}); it is truncated or damaged"
        ) from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{file} has no {error}; {ADVICE}") from error
    if not (isinstance(names, list) and isinstance(counts, list) and isinstance(data, dict)):
        raise DatasetError(
            f"{file} has users, num_samples or user_data of the wrong kind; {ADVICE}"
        )
    if len(names) != len(counts):
        raise DatasetError(f"{file} has {len(names)} users and {len(counts)} num_samples")
    for name, count in zip(names, counts, strict=True):
        # Taken out of the dictionary: its memory is free once the user is converted, and what
        # remains at the end is not listed in 'users'.
        user = data.pop(name, None) if isinstance(name, str) else None
        if not isinstance(user, dict) or not all(isinstance(user.get(k), list) for k in "xy"):
            raise DatasetError(f"{file}: user {name!r} has no lists 'x' and 'y' in user_data")
        x, y = user["x"], user["y"]
        if not len(x) == len(y) == count:
            raise DatasetError(
                f"{file}: user {name!r} has {len(x)} x, {len(y)} y and num_samples {count}; they "
                "must be equal"
            )
        yield User(name, x, y, file)
    # An example that is silently dropped would be a wrong dataset, so leftovers are an error.
    unlisted = [name for name, user in data.items() if isinstance(user, dict) and user.get("y")]
    if unlisted:
        raise DatasetError(
            f"{file}: user {unlisted[0]!r} has examples in user_data but is not one of 'users'"
        )


def _numbers(user: User, shape: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a user's examples, uint8 for images in steps of 1/255, else float32; and labels."""
    try:
        x, y = np.array(user.x), np.array(user.y)
        if x.dtype.kind not in "biuf":
            raise ValueError(f"they are {x.dtype}")
        with np.errstate(over="ignore"):  # numbers above float32 become infinite: refused later
            x = x.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{user.file}: user {user.name!r} has examples of mixed shapes, or not of numbers "
            f"({error})"
        ) from error
    # FedProx's generator writes labels as 3.0.
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.round(y)).all():
        y = y.astype(np.int64)
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        raise DatasetError(
            f"{user.file}: user {user.name!r} has labels of type {y.dtype} and shape {y.shape}; "
            "they must be integers or strings, one for each example"
        )
    if shape is not None:
        if x[0].size != np.prod(shape):
            raise DatasetError(
                f"{user.file}: user {user.name!r} has examples of {x[0].size} numbers; shape "
                f"{tuple(shape)} needs {np.prod(shape)}"
            )
        x = x.reshape(len(x), *shape)
    return _as_bytes(x), y


def _as_bytes(x: np.ndarray) -> np.ndarray:
    """Return uint8 where all values are multiples of 1/255 in [0, 1], else ``x``.

    Bytes take a quarter of the memory on the host and on devices.
    """
    if x.ndim < 4 or x.min() < 0 or x.max() > 1:
        return x
    scaled = np.round(x * 255)
    # 0.02 of a step: text formats round to a few decimals.
    return scaled.astype(np.uint8) if np.abs(scaled - x * 255).max() < 0.02 else x
