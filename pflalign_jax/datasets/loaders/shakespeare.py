"""Shakespeare: the next character, by speaking role; from LEAF, TFF, or plays as text."""

import pathlib
import re

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.leaf import is_leaf, read_users
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
"""LEAF's vocabulary of 80 characters; any other is read as a space, and counted in a note."""

SPEAKER = re.compile(
    r"^\s{0,4}((?:(?:DR|MR|MRS|ST)\. )?[A-Z][A-Z '’-]*[A-Z])(?:\s*$|[.:](?:\s+(.*))?$)"
)
"""A line that begins a speech: a name in capitals alone, or up to a full stop or a colon."""

HEADING = re.compile(r"^\s*(?:ACT|SCENE|DRAMATIS|CONTENTS|FINIS|THE END)\b|^\*\*\*")
"""A line that ends a speech and belongs to none; so do Project Gutenberg's ``***``."""


def load_shakespeare(path: str, length: int = 80) -> Examples:
    """Read Shakespeare in any of its formats.

    ``x`` and ``y`` are ``[N, length]`` tokens; ``y[:, t]`` is the character after ``x[:, t]``.

    Args:
      path: a LEAF folder (``train/*.json``, ``test/*.json``, examples of 80 characters and the
        next one); a directory with TFF's ``shakespeare_train.h5`` and ``shakespeare_test.h5``, or
        its archive; npz files with ``x`` and ``y`` of tokens (see `load_npz`); a text file or a
        folder of ``*.txt``, one play each, where a line with a name in capitals begins a speech.
        LEAF's windows overlap and its split is random, so that its test text occurs in training.
      length: characters per example; LEAF's files fix it at theirs.

    Raises:
      DatasetError: naming the file, and what is wrong with it.
    """
    place = pathlib.Path(path)
    if length < 1:
        raise DatasetError(f"shakespeare: length={length} is not allowed; it must be >= 1")
    if place.suffix == ".npz" or (place / "train.npz").is_file():
        return load_npz(path)._replace(name="shakespeare")
    if place.is_dir() and is_leaf(place):
        return _from_leaf(path)
    if place.name.endswith(".tar.bz2") or (place / "shakespeare_train.h5").is_file():
        return _from_tff(path, length)
    return _from_plays(place, length)


def _from_leaf(path):
    unknown = [0]

    def convert(user):
        if not all(isinstance(t, str) for t in (*user.x, *user.y)):
            raise DatasetError(f"{user.file}: user {user.name!r} has examples that are not text")
        lengths = {len(t) for t in user.x} | {len(t) + 79 for t in user.y}
        if lengths != {80}:
            raise DatasetError(
                f"{user.file}: user {user.name!r} has examples of {sorted(lengths)} characters; "
                "LEAF's have 80 and the next one"
            )
        whole, missing = _tokens("".join(x + y for x, y in zip(user.x, user.y, strict=True)))
        unknown[0] += missing
        whole = whole.reshape(-1, 81)
        return whole[:, :-1], whole[:, 1:]

    x, y, owner, split, notes = read_users(path, convert)
    notes += _unknown(unknown[0])
    return Examples("shakespeare", x, y, len(LETTERS), owner, split, notes=tuple(notes))


def _from_tff(path, length):
    parts, unknown = [], 0
    for split in ("train", "test"):
        with opened(path, "shakespeare", split, SOURCE) as (file, name):
            for role, group in file["examples"].items():
                if "snippets" not in getattr(group, "keys", tuple)():
                    raise DatasetError(f"shakespeare: role {role!r} of {name} has no 'snippets'")
                snippets = np.atleast_1d(group["snippets"][()]).tolist()
                if not all(isinstance(snippet, bytes) for snippet in snippets):
                    raise DatasetError(f"shakespeare: role {role!r} of {name} has no text")
                text = "\n".join(snippet.decode("utf8", "replace") for snippet in snippets)
                tokens, missing = _tokens(text)
                unknown += missing
                parts.append((_windows(tokens, length), role, split))
    return _assembled(path, parts, len(LETTERS), _unknown(unknown))


def _from_plays(place, length):
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise DatasetError(
            f"shakespeare: {place} has neither LEAF's train/*.json nor TFF's shakespeare_train.h5 "
            f"nor *.txt; TFF's archive can be had from {SOURCE.files[0].url}"
        )
    roles = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"shakespeare: {file} cannot be read as text ({error})") from error
        role = None
        for line in lines:
            if line.startswith("*** END"):  # Project Gutenberg's licence follows
                break
            match = SPEAKER.match(line)
            if HEADING.match(line):
                role = None
            elif match:
                role, line = f"{file.stem}:{match[1]}", match[2] or ""
            if role is not None and line.strip():
                roles.setdefault(role, []).append(line.strip())
    text = {role: "\n".join(lines) for role, lines in roles.items()}
    vocabulary = "".join(sorted(set("".join(text.values()))))
    if not vocabulary:
        raise DatasetError(
            f"shakespeare: {place} has no line that is a speaker's name in capitals with a speech"
        )
    parts = [(_windows(_tokens(t, vocabulary)[0], length), r, "") for r, t in text.items()]
    return _assembled(place, parts, len(vocabulary), [])._replace(split=None)


def _assembled(path, parts, num_classes, notes):
    """Return the examples of ``(windows, role, split)`` parts; roles without any are left out."""
    trained = {role for windows, role, split in parts if len(windows) and split != "test"}
    kept = [part for part in parts if part[1] in trained]
    left_out = len({role for _, role, _ in parts}) - len(trained)
    if not kept:
        raise DatasetError(f"shakespeare: {path} has no speech long enough for one example")
    if left_out:
        notes.append(f"{left_out} roles with too little text for an example are left out.")
    windows = np.concatenate([w for w, _, _ in kept])
    sizes = [len(w) for w, _, _ in kept]
    owner, split = (np.repeat([part[i] for part in kept], sizes) for i in (1, 2))
    return Examples(
        "shakespeare", windows[:, :-1], windows[:, 1:], num_classes, owner, split,
        notes=tuple(notes),
    )  # fmt: skip


def _windows(tokens, length):
    """Return ``[n, length + 1]`` windows that overlap in one character; the rest is dropped."""
    count = max(len(tokens) - 1, 0) // length
    starts = np.arange(count)[:, None] * length
    return tokens[starts + np.arange(length + 1)[None]]


def _tokens(text, letters=LETTERS):
    """Return int32 tokens, and how many characters are not in the vocabulary."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    alphabet = np.array([ord(c) for c in letters], np.uint32)
    order = np.argsort(alphabet)
    place = np.searchsorted(alphabet[order], codes).clip(max=len(alphabet) - 1)
    tokens = order[place].astype(np.int32)
    unknown = alphabet[tokens] != codes
    tokens[unknown] = letters.find(" ")
    return tokens, int(unknown.sum())


def _unknown(count):
    return [f"{count} characters outside LEAF's vocabulary are read as spaces."] if count else []
