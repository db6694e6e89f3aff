"""RULER's scores, from 0 to 100, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from msa_jax.evaluation.results import Results, Row
from msa_jax.evaluation.ruler.tasks import SUBTASKS
from msa_jax.evaluation.suite_config import ANSWERS
from msa_jax.figures import save_figure

# The metric that is a hundredth of a score.
SCORE = "ruler"
MEAN = "mean"


def write_report(results: Results, folder: Path) -> str:
    """Writes `scores.json`, `scores.png` and `scores.svg`; returns a table."""
    scores = _scores(results)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    plot_scores(results, folder / "scores")
    return format_scores(scores)


def format_scores(scores: dict[str, dict[str, float]]) -> str:
    """A line for each subtask, and their means; a column for each control and each size."""
    names = [*(name for name in SUBTASKS if any(name in x for x in scores.values())), MEAN]
    lines = ["".join([f"{'':16}", *(f"{title:>14}" for title in scores)])]
    for name in names:
        cells = (f"{x[name]:.2f}" if name in x else "" for x in scores.values())
        lines.append("".join([f"{name:16}", *(f"{cell:>14}" for cell in cells)]))
    return "\n".join(lines)


def plot_scores(results: Results, path: Path) -> None:
    """Scores against the size of memory with their intervals, a line for each subtask."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for name in SUBTASKS:
        rows = [row for row in _rows(results) if row.set == name and row.memory_tokens]
        if rows:
            sizes = [row.memory_tokens for row in rows]
            (line,) = axis.plot(sizes, [100 * row.value for row in rows], marker="o", label=name)
            bounds = ([100 * row.low for row in rows], [100 * row.high for row in rows])
            axis.fill_between(sizes, *bounds, color=line.get_color(), alpha=0.1, linewidth=0)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylim(-2, 102)
    axis.set_xlabel("tokens of memory")
    axis.set_ylabel("score, 95 % interval")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    save_figure(figure, path)


def _scores(results: Results) -> dict[str, dict[str, float]]:
    """Scores by subtask, and their mean, of each control and each size."""
    scores: dict[str, dict[str, float]] = {}
    for row in _rows(results):
        control = row.system.removeprefix(ANSWERS).strip()
        column = scores.setdefault(control or f"{row.memory_tokens:,}", {})
        column[row.set] = round(100 * row.value, 2)
    return {
        title: column | {MEAN: round(float(np.mean(list(column.values()))), 2)}
        for title, column in scores.items()
    }


def _rows(results: Results) -> list[Row]:
    rows = [row for row in results.rows if row.metric == SCORE]
    return sorted(rows, key=lambda row: (row.memory_tokens, row.system))
