"""Who wins a comparison, in words: what its numbers allow to say and no more."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.compare.columns import interval_text, spread
from experiments.compare.entries import RANKED_BY, RIVALS, Entry, gain, ranked, rivals_of
from experiments.compare.paired import Difference
from pflalign_jax.runs.headline import Headline

OURS = "pflalign"
"""The method that this library is about: a verdict always says where it stands."""


class Standing(NamedTuple):
    """What a verdict needs of a method.

    Attributes:
      method: its name.
      score: mean ± standard deviation over seeds, as a text; "" if all seeds diverged.
      to_best: its difference to the best method; None for the best.
      over: rival to the difference to it, for those of `RIVALS` that were compared.
    """

    method: str
    score: str
    to_best: Difference | None
    over: Mapping[str, Difference]


def standings_of(entries: Sequence[Entry]) -> list[Standing]:
    """Return the standings of a comparison's methods, the best first."""
    order = ranked(entries)
    rivals = rivals_of(entries)
    return [
        Standing(
            found.method,
            spread(found.scores.get(RANKED_BY, []), found.headline),
            None if found is order[0] else gain(found, order[0]),
            {rival.method: gain(found, rival) for rival in rivals if found is not rival},
        )
        for found in order
    ]


def verdict(standings: Sequence[Standing], headline: Headline) -> str:
    """Return who is first, who cannot be told from it, and where pFLAlign and own methods stand.

    Where no interval is known nothing is said of what can be told.

    Args:
      standings: the best first.
      headline: of their scores.
    """
    best, *others = standings
    if not best.score:
        return "No method was trained to its end: all diverged."
    if not others:
        return f"`{best.method}` has {best.score}; nothing was compared with it."
    said = [f"`{best.method}` is first of {len(standings)} with {best.score}."]
    known = [each for each in others if each.to_best and np.isfinite(each.to_best.low)]
    level = [f"`{each.method}`" for each in known if each.to_best and not each.to_best.is_clear]
    if known and level:
        said.append(f"{_listed(level)} cannot be told from it.")
    elif len(known) == len(others):
        said.append("All others can be told from it.")
    for place, each in enumerate(standings, 1):
        # Methods of one's own are named as module:function.
        if each.method == OURS or ":" in each.method:
            said.append(_of_one(each, place, headline))
    return " ".join(filter(None, said))


def _of_one(each: Standing, place: int, headline: Headline) -> str:
    """Return where a method stands."""
    clauses = [
        _over(each.over[rival], rival, headline) for rival in reversed(RIVALS) if rival in each.over
    ]
    clauses = [clause for clause in clauses if clause]
    if each.to_best is None:
        return f"It is {_listed(clauses)}." if clauses else ""
    if not each.score:
        return f"`{each.method}` diverged with all seeds."
    where = f"`{each.method}` is {ordinal(place)} with {each.score}"
    if not np.isfinite(each.to_best.mean):
        return f"{where}."
    behind = f"{headline.text(-each.to_best.mean)} behind the first"
    return f"{where}, {_listed([behind, *clauses])}."


def _over(over: Difference, rival: str, headline: Headline) -> str:
    """Return how a method stands to a rival."""
    if not np.isfinite(over.mean):
        return ""
    inside = f"{over.won} {'client' if over.won == 1 else 'clients'} won, {over.lost} lost"
    if not np.isfinite(over.low):
        return f"{_by(over.mean, headline)} `{rival}` ({inside})"
    inside = f"{interval_text(over, headline)}; {inside}"
    if over.is_clear:
        return f"{_by(over.mean, headline)} `{rival}` ({inside})"
    mean = headline.text(over.mean, sign="+")
    return f"not to be told from `{rival}` ({mean}, {inside})"


def _by(mean: float, headline: Headline) -> str:
    return f"{headline.text(abs(mean))} {'ahead of' if mean >= 0 else 'behind'}"


def _listed(words: Sequence[str]) -> str:
    """Return words as a list.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def ordinal(place: int) -> str:
    """Return a place in words of a table.

    >>> ordinal(1), ordinal(2), ordinal(11), ordinal(23)
    ('1st', '2nd', '11th', '23rd')
    """
    last = 0 if 10 < place % 100 < 14 else place % 10
    return f"{place}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"
