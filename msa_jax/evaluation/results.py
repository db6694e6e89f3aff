"""What was measured, written down as it is: a table of means, and a line for each question."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.evaluation.conditions import CONDITIONS, Conditions, Provenance
from msa_jax.evaluation.metrics import bootstrap_interval

_LONGEST_LINE = 1 << 20
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

    def __init__(self, folder: Path, conditions: Mapping[str, Conditions]):
        """Reads what an earlier run has left; a line that it did not finish is dropped.

        Args:
            folder: it is made if it is not there.
            conditions: of all that this run may add, by `key_of` the set and the system.

        Raises:
            ConfigError: if the folder holds results of other conditions, or of unknown ones.
        """
        self._provenance = Provenance(folder, conditions)
        folder.mkdir(parents=True, exist_ok=True)
        self._table, self._predictions = folder / TABLE, folder / PREDICTIONS
        for path in (self._table, self._predictions):
            if path.is_file():
                _drop_unfinished(path)
        self.rows: list[Row] = []
        if self._table.is_file():
            with open(self._table, newline="", encoding="utf-8") as file:
                for values in list(csv.reader(file))[1:]:
                    self.rows.append(_row(values))
        else:
            self._table.write_text(",".join(Row._fields) + "\n", encoding="utf-8")
        keys = {key_of(row.set, row.system) for row in self.rows}
        if (keys & set(conditions)) - set(self._provenance.by_key):
            raise ConfigError(
                f"{folder} holds results, but no {CONDITIONS} that says what they belong to; name "
                "another workdir or remove it."
            )

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
        by: str | None = None,
    ) -> None:
        """Writes what a system did on a set at a size.

        Args:
            set_name: of the set.
            memory_tokens: the size.
            system: its name.
            measures: of each question, by metric.
            predictions: of each question, what there is to keep.
            by: what the measures depend on besides what is there already; the system by default.
        """
        self._provenance.keep(key_of(set_name, by or system))
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

    def answers(self) -> dict[tuple[str, int, str], dict[str, str]]:
        """Answers that were kept, by question, of each set, size and system that is complete."""
        measured = {(row.set, row.memory_tokens, row.system) for row in self.rows}
        answers: dict[tuple[str, int, str], dict[str, str]] = {}
        if self._predictions.is_file():
            with open(self._predictions, encoding="utf-8") as file:
                for line in file:
                    kept = json.loads(line)
                    key = (kept["set"], kept["memory_tokens"], kept["system"])
                    if "answer" in kept and key in measured:
                        answers.setdefault(key, {})[kept["question"]] = kept["answer"]
        return answers

    def value(self, set_name: str, memory_tokens: int, system: str, metric: str) -> Row | None:
        """One row, if it is there."""
        wanted = (set_name, memory_tokens, system, metric)
        return next((row for row in self.rows if row[:4] == wanted), None)


def key_of(set_name: str, system: str) -> str:
    """What the conditions of a system's results on a set are kept under."""
    return f"{set_name}: {system}"


def columns(measures: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Values by metric; questions that lack one (answers, say) are left out of it."""
    columns: dict[str, list[float]] = {}
    for row in measures:
        for metric, value in row.items():
            columns.setdefault(metric, []).append(value)
    return columns


def _drop_unfinished(path: Path) -> None:
    """Cuts a last line that does not end."""
    with open(path, "rb+") as file:
        start = max(0, file.seek(0, io.SEEK_END) - _LONGEST_LINE)
        file.seek(start)
        tail = file.read()
        file.truncate(start + tail.rfind(b"\n") + 1)


def _row(values: Sequence[str]) -> Row:
    set_name, memory_tokens, system, metric, value, low, high, n = values
    means = map(float, (value, low, high))
    return Row(set_name, int(memory_tokens), system, metric, *means, int(n))
