"""The headline: the one score that is shown first, and that rounds and step sizes are chosen by."""

from typing import NamedTuple, TypeVar

import numpy as np

from pflalign_jax.tasks import Task

Number = TypeVar("Number", float, np.ndarray)

PERSONAL = "personal/adapted"
"""The model of a headline: every client's own after its local steps."""


class Headline(NamedTuple):
    """A task's headline metric, as a run's files keep it.

    Attributes:
      metric: its name.
      higher_is_better: whether a larger value is better.
      percent: whether it is a share of 1, which people are shown in percent.
    """

    metric: str = "accuracy"  # as of runs from before there were tasks
    higher_is_better: bool = True
    percent: bool = True

    def key(self, split: str, statistic: str = "mean") -> str:
        """Return the headline's name in a row of metrics.

        >>> Headline().key("validation")
        'accuracy/validation/personal/adapted/mean'
        """
        return f"{self.metric}/{split}/{PERSONAL}/{statistic}"

    def merit(self, value: float) -> float:
        """Return a number of which more is better, from a value or back to it.

        >>> Headline("rmse", higher_is_better=False).merit(2.0)
        -2.0
        """
        return value if self.higher_is_better else -value

    def shown(self, value: Number) -> Number:
        """Return a value, or an array of them, as it is shown: in percent, or as it is."""
        return 100 * value if self.percent else value

    def text(self, shown: float, sign: str = "") -> str:
        """Return the text of a value from `shown`; with ``sign="+"`` its sign always.

        >>> Headline().text(93.456), Headline("rmse", False, False).text(54.321)
        ('93.5', '54.32')
        """
        return f"{shown:{sign}.1f}" if self.percent else f"{shown:{sign}.4g}"

    def spread_text(self, shown: float) -> str:
        """Return the text of a standard deviation of values from `shown`."""
        return f"{shown:.1f}" if self.percent else f"{shown:.2g}"

    @property
    def unit(self) -> str:
        """What follows a number: ``"%"``, or nothing where it has the units of the data."""
        return "%" if self.percent else ""

    @property
    def title(self) -> str:
        """Its name with its unit.

        >>> Headline().title, Headline("rmse", False, False).title
        ('accuracy in %', 'rmse')
        """
        return f"{self.metric} in %" if self.percent else self.metric


ACCURACY = Headline()
"""The headline of a classification."""


def headline_of(task: Task) -> Headline:
    """Return the headline of a task."""
    metric = task.headline
    return Headline(metric.name, metric.higher_is_better, metric.percent)
