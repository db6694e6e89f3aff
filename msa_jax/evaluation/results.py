"""What was measured, written down as it is: a table of means, and a line for each question."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msa_jax.evaluation.metrics import bootstrap_interval

TABLE, PREDICTIONS = "results.csv", "predictions.jsonl"


class Row(NamedTuple):
    """The mean of a measure over the questions of a set.

    Attributes:
        set: of questions.
        memory_tokens: size of their memories; 0 for a control without distractors.
        system: what was measured.
        metric: what of it.
        value: the mean.
        low: of its 95 % bootstrap interval.
        high: of it.
        n: questions.
    """

    set: str
    memory_tokens: int
    system: str
    metric: str
    value: float
    low: float
    high: float
    n: int


class Results:
    """Results in a folder. What is there already is kept, and need not be measured again.

    Attributes:
        rows: all of them.
    """

    def __init__(self, folder: Path):
        """Reads what an earlier run has left; a line that it did not finish is dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        self._table, self._predictions = folder / TABLE, folder / PREDICTIONS
        self.rows: list[Row] = []
        if self._table.is_file():
            with open(self._table, newline="", encoding="utf-8") as file:
                for values in list(csv.reader(file))[1:]:
                    self.rows.append(_row(values))
        else:
            self._table.write_text(",".join(Row._fields) + "\n", encoding="utf-8")

    def has(self, set_name: str, memory_tokens: int, system: str) -> bool:
        """Whether a system has been measured on a set at a size."""
        wanted = (set_name, memory_tokens, system)
        return any((row.set, row.memory_tokens, row.system) == wanted for row in self.rows)

    def add(
        self,
        set_name: str,
        memory_tokens: int,
        system: str,
        measures: Mapping[str, Sequence[float]],
        predictions: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Writes what a system did on a set at a size.

        Args:
            set_name: of the set.
            memory_tokens: the size.
            system: its name.
            measures: of each question, by metric.
            predictions: of each question, what there is to keep.
        """
        rows = []
        for metric, values in measures.items():
            values = np.asarray(values, float)
            means = (values.mean(), *bootstrap_interval(values))
            rounded = (round(float(x), 5) for x in means)
            rows.append(Row(set_name, memory_tokens, system, metric, *rounded, len(values)))
        where = {"set": set_name, "memory_tokens": memory_tokens, "system": system}
        # The table comes last: what is in it is complete.
        with open(self._predictions, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({**where, **x}) + "\n" for x in predictions)
        with open(self._table, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        self.rows += rows

    def value(self, set_name: str, memory_tokens: int, system: str, metric: str) -> Row | None:
        """One row, if it is there."""
        wanted = (set_name, memory_tokens, system, metric)
        return next((row for row in self.rows if row[:4] == wanted), None)


def _row(values: Sequence[str]) -> Row:
    set_name, memory_tokens, system, metric, value, low, high, n = values
    means = map(float, (value, low, high))
    return Row(set_name, int(memory_tokens), system, metric, *means, int(n))
