"""How far two sides of a comparison are apart, and the table of it."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table

from experiments.agreement import ours
from experiments.agreement.cases import CASES
from experiments.agreement.ours import OurRun, Outcome


class Row(NamedTuple):
    """A comparison of an algorithm.

    Attributes:
      algorithm: its name.
      undone: whether what PFLlib is known to do differently was undone.
      global_model: relative difference of the global models' parameters; None without any.
      personal: the largest of a client's personal models.
      rounding: the same of our own run, had its first weights been other by about 1e-7.
      of_change: as ``personal``, relative to how far training has moved the models.
      agreeing: clients whose hits are equal.
      clients: K.
    """

    algorithm: str
    undone: bool
    global_model: float | None
    personal: float
    rounding: float
    of_change: float
    agreeing: int
    clients: int


def comparisons(framework: Any, federation: Any, names: Iterable[str]) -> Iterator[Row]:
    """Yield a row for each algorithm, and one more where departures can be undone.

    Args:
      framework: the module of the other side, `pfllib`.
      federation: what its ``prepare`` returns.
      names: of algorithms.
    """
    first_params = framework.first_params(federation)
    of_both = federation.dataset, federation.orders, federation.settings
    for name in names:
        case = CASES[name]
        train_ours = functools.partial(
            ours.train, name, case.fields, federation.network, first_params, *of_both
        )
        mine = train_ours()
        yield compare(name, mine, framework.train(federation, case, mine, undo=False))
        if case.undo_ours is not None:
            with case.undo_ours():
                mine = train_ours()
        if case.undo is not None:
            yield compare(
                name, mine, framework.train(federation, case, mine, undo=True), undone=True
            )


def compare(algorithm: str, run: OurRun, theirs: Outcome, undone: bool = False) -> Row:
    """Return how far two runs of an algorithm are apart."""
    mine = run.outcome
    of_global = None
    if mine.global_model is not None and theirs.global_model is not None:
        of_global = relative_difference(theirs.global_model, mine.global_model)
    difference = norms(theirs.personal, mine.personal)
    return Row(
        algorithm,
        undone,
        of_global,
        float((difference / norms(mine.personal)).max()),
        float((norms(run.perturbed, mine.personal) / norms(mine.personal)).max()),
        float((difference / norms(mine.personal, run.first_personal)).max()),
        int((mine.hits == theirs.hits).sum()),
        len(mine.hits),
    )


def relative_difference(a: Any, b: Any) -> float:
    """Return ``‖a - b‖ / ‖b‖`` of two trees.

    >>> round(relative_difference({"w": np.ones(4)}, {"w": np.full(4, 2.0)}), 3)
    0.5
    """
    a, b = (jax.tree.map(lambda leaf: leaf[None], tree) for tree in (a, b))
    return float((norms(a, b) / norms(b))[0])


def norms(a: Any, b: Any = None) -> np.ndarray:
    """Return ``‖a_k - b_k‖`` (or ``‖a_k‖``) of trees with leaves ``[K, ...]``, as ``[K]``."""
    if b is not None:
        a = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - y, a, b)
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(a))
    return np.sqrt(sum((leaf.reshape(len(leaf), -1) ** 2).sum(1) for leaf in leaves))


def table(rows: Iterable[Row]) -> Table:
    """Return rows as a table that is markdown, too."""
    made = Table(box=box.MARKDOWN)
    made.add_column("algorithm")
    made.add_column("departures")
    for column in ("global model", "personal models", "rounding", "of their change", "hits agree"):
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(
            row.algorithm,
            ("undone" if row.undone else "left") if CASES[row.algorithm].departure else "none",
            "" if row.global_model is None else f"{row.global_model:.0e}",
            f"{row.personal:.0e}",
            f"{row.rounding:.0e}",
            f"{row.of_change:.0e}",
            f"{row.agreeing} of {row.clients}",
        )
    return made
