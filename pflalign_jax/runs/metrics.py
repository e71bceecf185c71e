"""What a line of ``metrics.jsonl`` counts and computes."""

import math
from collections.abc import Mapping
from typing import Any

from pflalign_jax.federated import Federation, RoundResult

HEADLINE = "accuracy/{split}/personal/adapted/mean"
"""The score that stands on the progress bar and chooses the best round (on validation)."""

COUNTED = ("invited", "answered", "nonfinite")
"""What `count` counts: models sent, messages sent, messages left out."""


def count(result: RoundResult) -> dict[str, int]:
    """Return a round's share of what a line of metrics counts."""
    nonfinite = int(result.counts.nonfinite)
    return dict(zip(COUNTED, (result.invited, len(result.cohort), nonfinite), strict=True))


def columns(tally: Mapping[str, float], federation: Federation) -> dict[str, float]:
    """Return bytes and clients for a line of metrics.

    Bytes, invited and answered clients are means per round, ``clients/nonfinite`` is a sum.
    """
    up, down = (b / federation.cohort_size for b in federation.bytes_per_round)
    return {
        "bytes_up": round(up * tally["answered"] / tally["rounds"]),
        "bytes_down": round(down * tally["invited"] / tally["rounds"]),
        "clients/invited": tally["invited"] / tally["rounds"],
        "clients/answered": tally["answered"] / tally["rounds"],
        "clients/nonfinite": tally["nonfinite"],
    }


def finite_or_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of metrics with None (null in json) for what is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def ratio(a: Any, b: Any) -> float:
    """Return a / b of two counts, NaN for 0 / 0."""
    return int(a) / int(b) if int(b) else math.nan
