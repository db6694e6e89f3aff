"""How RULER scores answers to its needle-in-a-haystack subtasks."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def clean(prediction: str) -> str:
    """A prediction as RULER reads it: without space around it, control characters as new lines."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def share_found(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that occur somewhere in a prediction, whatever their case."""
    text = clean(prediction).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def percent(shares: Sequence[float]) -> float:
    """The score of a subtask: the mean of its samples' shares in percent, to two decimals."""
    return round(100 * sum(shares) / len(shares), 2)
