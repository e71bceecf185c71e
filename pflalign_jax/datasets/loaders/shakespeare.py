"""Shakespeare: the next character, by speaking role; from LEAF, TFF, or plays as text."""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.leaf import User, is_leaf, read_users
from pflalign_jax.datasets.loaders.npz import load_npz
from pflalign_jax.datasets.loaders.sources import File, Source
from pflalign_jax.datasets.loaders.tff import BASE, CITATION, opened

SOURCE = Source(
    name="shakespeare",
    title="Next character in the speeches of Shakespeare's roles",
    homepage="https://leaf.cmu.edu",
    licence="public domain (Project Gutenberg)",
    citation=CITATION,
    files=(
        File(
            "shakespeare.tar.bz2",
            f"{BASE}/shakespeare.tar.bz2",
            "sha256:0285be9906cb5f268092eee4edeeacfc2af4574f2941f7cc2f08a321d7f5c707",
            1.4,
        ),
    ),
    counts={},
    classes=80,
    clients=715,
)

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's vocabulary of 80 characters. Others are read as spaces, and a note says how many."""

SPEAKER = re.compile(
    r"^\s{0,4}((?:(?:DR|MR|MRS|ST)\. )?[A-Z][A-Z '’-]*[A-Z])(?:\s*$|[.:](?:\s+(.*))?$)"
)
"""A line that begins a speech: a name in capitals alone, or up to a full stop or a colon."""

HEADING = re.compile(r"^\s*(?:ACT|SCENE|DRAMATIS|CONTENTS|FINIS|THE END)\b|^\*\*\*")
"""A line that ends a speech and belongs to none, as Project Gutenberg's ``***`` do."""


class Part(NamedTuple):
    """One role's windows in one split, ``[n, length + 1]`` tokens."""

    windows: np.ndarray
    role: str
    split: str


def load_shakespeare(path: str, length: int = 80) -> Examples:
    """Read Shakespeare in any of its formats.

    ``x`` and ``y`` are ``[N, length]`` tokens; ``y[:, t]`` is the character after ``x[:, t]``.

    Args:
      path: a LEAF folder (``train/*.json``, ``test/*.json``, examples of 80 characters and the
        next one); a directory with TFF's ``shakespeare_train.h5`` and ``shakespeare_test.h5``, or
        its archive; npz files with ``x``, ``y`` of tokens and ``client``; a text file or a
        folder of ``*.txt``, one play each, where a line with a name in capitals begins a speech.
        LEAF's windows overlap and its split is random, so its test text also occurs in training.
      length: characters per example; LEAF's files have 80, whatever this says.

    Raises:
      DatasetError: naming the file, and what is wrong with it.
    """
    given = pathlib.Path(path)
    if length < 1:
        raise DatasetError(f"shakespeare: length={length} is not allowed; it must be >= 1")
    if given.suffix == ".npz" or (given / "train.npz").is_file():
        return load_npz(path)._replace(name="shakespeare")
    if given.is_dir() and is_leaf(given):
        return _from_leaf(path)
    if given.name.endswith(".tar.bz2") or (given / "shakespeare_train.h5").is_file():
        return _from_tff(path, length)
    return _from_plays(given, length)


def _from_leaf(path: str) -> Examples:
    """Read LEAF's json files."""
    unknown = []  # characters outside the vocabulary, of each user

    def convert(user: User) -> tuple[np.ndarray, np.ndarray]:
        if not all(isinstance(t, str) for t in (*user.x, *user.y)):
            raise DatasetError(f"{user.file}: user {user.name!r} has examples that are not text")
        # An x has 80 characters, a y one: 80 when 79 are added, so that one set tells both.
        lengths = {len(t) for t in user.x} | {len(t) + 79 for t in user.y}
        if lengths != {80}:
            raise DatasetError(
                f"{user.file}: user {user.name!r} has examples of {sorted(lengths)} characters; "
                "LEAF's have 80 and the next one"
            )
        tokens, count = _tokens("".join(x + y for x, y in zip(user.x, user.y, strict=True)))
        unknown.append(count)
        windows = tokens.reshape(-1, 81)
        return windows[:, :-1], windows[:, 1:]

    x, y, owner, split, notes = read_users(path, convert)
    notes += _unknown_note(sum(unknown))
    return Examples("shakespeare", x, y, len(LETTERS), owner, split, notes=tuple(notes))


def _from_tff(path: str, length: int) -> Examples:
    """Read TFF's HDF5 files."""
    parts: list[Part] = []
    unknown = 0
    for split in ("train", "test"):
        with opened(path, "shakespeare", split, SOURCE) as (file, name):
            for role, group in file["examples"].items():
                # In a damaged file a role may be an array, which has no keys.
                if "snippets" not in getattr(group, "keys", tuple)():
                    raise DatasetError(f"shakespeare: role {role!r} of {name} has no 'snippets'")
                snippets = np.atleast_1d(group["snippets"][()]).tolist()
                if not all(isinstance(snippet, bytes) for snippet in snippets):
                    raise DatasetError(f"shakespeare: role {role!r} of {name} has no text")
                text = "\n".join(snippet.decode("utf8", "replace") for snippet in snippets)
                tokens, count = _tokens(text)
                unknown += count
                parts.append(Part(_windows(tokens, length), role, split))
    return _from_parts(path, parts, len(LETTERS), _unknown_note(unknown))


def _from_plays(given: pathlib.Path, length: int) -> Examples:
    """Read plays as text."""
    files = sorted(given.glob("*.txt")) if given.is_dir() else [given]
    if not files:
        raise DatasetError(
            f"shakespeare: {given} has neither LEAF's train/*.json nor TFF's shakespeare_train.h5 "
            f"nor *.txt; get TFF's archive from {SOURCE.files[0].url}"
        )
    speeches: dict[str, list[str]] = {}
    for file in files:
        for role, line in _spoken_lines(file):
            speeches.setdefault(role, []).append(line)
    text = {role: "\n".join(lines) for role, lines in speeches.items()}
    # Plays have characters that LEAF's vocabulary lacks, as accents; theirs is made of what occurs.
    vocabulary = "".join(sorted(set("".join(text.values()))))
    if not vocabulary:
        raise DatasetError(
            f"shakespeare: {given} has no line that is a speaker's name in capitals with a speech"
        )
    parts = [
        Part(_windows(_tokens(t, vocabulary)[0], length), role, "") for role, t in text.items()
    ]
    return _from_parts(given, parts, len(vocabulary), [])._replace(split=None)


def _spoken_lines(file: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the role, ``PLAY:NAME``, and the text of every spoken line of a play."""
    try:
        lines = file.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"shakespeare: {file} cannot be read as text ({error})") from error
    role = None  # of the speech that the line belongs to
    for line in lines:
        if line.startswith("*** END"):  # Project Gutenberg's licence follows
            break
        match = SPEAKER.match(line)
        # A heading first: "ACT I" looks like a speaker's name.
        if HEADING.match(line):
            role = None
        elif match:
            role, line = f"{file.stem}:{match[1]}", match[2] or ""
        if role is not None and line.strip():
            yield role, line.strip()


def _from_parts(
    path: str | pathlib.Path, parts: Sequence[Part], num_classes: int, notes: list[str]
) -> Examples:
    """Return the examples of all parts; roles without training examples are left out."""
    trained = {part.role for part in parts if len(part.windows) and part.split != "test"}
    kept = [part for part in parts if part.role in trained]
    left_out = len({part.role for part in parts}) - len(trained)
    if not kept:
        raise DatasetError(f"shakespeare: {path} has no speech long enough for one example")
    if left_out:
        notes.append(f"{left_out} roles with too little text for an example are left out.")
    windows = np.concatenate([part.windows for part in kept])
    sizes = [len(part.windows) for part in kept]
    return Examples(
        "shakespeare",
        windows[:, :-1],
        windows[:, 1:],
        num_classes,
        owner=np.repeat([part.role for part in kept], sizes),
        split=np.repeat([part.split for part in kept], sizes),
        notes=tuple(notes),
    )


def _windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """Return ``[n, length + 1]`` windows that overlap in one character; the rest is dropped.

    The last character of a window is its last label, and the first input of the next window.
    """
    count = max(len(tokens) - 1, 0) // length
    starts = np.arange(count)[:, None] * length
    return tokens[starts + np.arange(length + 1)[None]]


def _tokens(text: str, letters: str = LETTERS) -> tuple[np.ndarray, int]:
    """Return int32 tokens, and how many characters are not in the vocabulary."""
    # Four bytes for each character: whole arrays are looked up, not one character after another.
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    alphabet = np.array([ord(c) for c in letters], np.uint32)
    order = np.argsort(alphabet)
    # Clipped, since characters above the whole alphabet are found behind its end.
    positions = np.searchsorted(alphabet[order], codes).clip(max=len(alphabet) - 1)
    tokens = order[positions].astype(np.int32)
    unknown = alphabet[tokens] != codes
    tokens[unknown] = letters.find(" ")
    return tokens, int(unknown.sum())


def _unknown_note(count: int) -> list[str]:
    return [f"{count} characters outside LEAF's vocabulary are read as spaces."] if count else []
