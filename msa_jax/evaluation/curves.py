"""The results of a suite as files: configuration, facts, plots; and as a table to print."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from msa_jax.evaluation.facts import facts_of
from msa_jax.evaluation.judging import GRADE
from msa_jax.evaluation.qa import CONTROLS
from msa_jax.evaluation.report import aligned
from msa_jax.evaluation.results import Results, Row
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import (
    ANSWERS,
    BM25_ANSWERS,
    BM25_SYSTEM,
    CHANCE,
    DENSE,
    DENSE_ANSWERS,
    FULL_ATTENTION,
    MSA,
)
from msa_jax.figures import save_figure

_RECALL = "recall@16"
_LINES = {
    MSA: {"color": "C0", "marker": "o"},
    BM25_SYSTEM: {"color": "C1", "marker": "s"},
    DENSE: {"color": "C2", "marker": "^"},
    CHANCE: {"color": "grey", "linestyle": ":"},
}
_CONTROL_STYLES = dict(zip(CONTROLS, (":", "--", "-."), strict=True))
_READERS = {
    BM25_ANSWERS: {"color": "C1", "marker": "s"},
    DENSE_ANSWERS: {"color": "C2", "marker": "^"},
    FULL_ATTENTION: {"color": "C5", "marker": "D"},
}
# Columns of the tables: of systems that rank, and of those that answer.
_RANKED = ("recall@1", "recall@4", "recall@16", "mrr@16", "all@16", "recall@16 union")
_ANSWERED = (
    *("exact match", "f1", GRADE, "first id", "all@16 one round", "all@16 interleaved"),
    *("documents read", "read precision", "read recall", "read f1", "tokens read"),
)


def write_curves(suite: Suite, command: Sequence[str]) -> str:
    """Writes what goes with a suite's results, and returns them as a table."""
    folder, results = Path(suite.config.workdir), suite.results
    _write_json(folder / "config.json", dataclasses.asdict(suite.config))
    # A list, since systems may have been measured one after the other, on different machines.
    facts = folder / "facts.json"
    runs = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else []
    run = facts_of(
        suite.corpus,
        suite.sets,
        suite.seconds,
        suite.config.interleave,
        suite.conditions,
        shlex.join(command),
    )
    _write_json(facts, [*runs, run])
    _write_json(folder / "results.json", [row._asdict() for row in results.rows])
    metrics = {row.metric for row in results.rows}
    if _RECALL in metrics:
        plot_recall(results, folder / "recall")
    if "f1" in metrics:
        plot_answers(results, folder / "answers")
    return format_results(results)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def plot_recall(results: Results, path: Path) -> None:
    """Recall against the size of memory, one panel per set; as PNG and SVG."""
    sets = list(dict.fromkeys(row.set for row in results.rows if row.metric == _RECALL))
    figure, axes = _panels(sets)
    for axis, name in zip(axes, sets, strict=True):
        for system, style in _LINES.items():
            _draw(axis, results, name, system, _RECALL, label=system, **style)
        _finish(axis, results, name)
    axes[0].set_ylabel(f"{_RECALL}, 95 % interval")
    _save(figure, axes, path)


def plot_answers(results: Results, path: Path) -> None:
    """F1 of answers against the size of memory, with controls, one panel per set."""
    sets = list(dict.fromkeys(row.set for row in results.rows if row.metric == "f1"))
    figure, axes = _panels(sets)
    for axis, name in zip(axes, sets, strict=True):
        _draw(axis, results, name, ANSWERS, "f1", label="F1", color="C0", marker="o")
        _draw(
            axis, results, name, ANSWERS, "exact match", label="exact match", color="C4", marker="x"
        )
        _draw(
            axis, results, name, ANSWERS, "first id", label="first id right", color="C3", marker="v"
        )
        for system, style in _READERS.items():
            _draw(axis, results, name, system, "f1", label=f"F1, {system}", **style)
        for row in results.rows:
            if row.set == name and row.metric == "f1" and row.memory_tokens == 0:
                control = row.system.removeprefix(MSA).strip()
                style = _CONTROL_STYLES[control]
                axis.axhline(row.value, color="grey", linestyle=style, label=f"F1, {control}")
        _finish(axis, results, name)
    axes[0].set_ylabel("share, 95 % interval")
    _save(figure, axes, path)


def format_results(results: Results) -> str:
    """Two tables, of rankings and of answers: a line for each set, size and system.

    Each value is a mean, with half the width of its 95 % interval.
    """
    keys = dict.fromkeys((row.set, row.memory_tokens, row.system) for row in results.rows)
    tables = []
    for metrics in (_RANKED, _ANSWERED):
        rows = {key: [results.value(*key, metric) for metric in metrics] for key in keys}
        rows = {key: row for key, row in rows.items() if any(row)}
        # A column that nobody has is left out.
        used = [i for i in range(len(metrics)) if any(row[i] for row in rows.values())]
        lines = [["questions", "memory", "system", *(metrics[i] for i in used)]]
        for key in sorted(rows, key=lambda key: key[:2]):
            name, memory_tokens, system = key
            lines.append([name, f"{memory_tokens:,}", system, *(_cell(rows[key][i]) for i in used)])
        if rows:
            tables.append(aligned(lines))
    return "\n\n".join(tables)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    digits = 3 if row.high <= 1 else 1
    return f"{row.value:,.{digits}f} ±{(row.high - row.low) / 2:,.{digits}f}"


def _panels(sets: Sequence[str]):
    figure = Figure(figsize=(4.2 * max(1, len(sets)), 4), layout="constrained")
    return figure, figure.subplots(1, max(1, len(sets)), sharey=True, squeeze=False)[0]


def _draw(axis, results: Results, name: str, system: str, metric: str, **style) -> None:
    rows = sorted(
        (row for row in results.rows if row[:1] + row[2:4] == (name, system, metric)),
        key=lambda row: row.memory_tokens,
    )
    if rows:
        sizes = [row.memory_tokens for row in rows]
        axis.plot(sizes, [row.value for row in rows], **style)
        bounds = [row.low for row in rows], [row.high for row in rows]
        axis.fill_between(sizes, *bounds, color=style["color"], alpha=0.15, linewidth=0)
        axis.vlines(sizes, *bounds, color=style["color"], alpha=0.4)  # One size has no band.


def _finish(axis, results: Results, name: str) -> None:
    sizes = sorted({row.memory_tokens for row in results.rows} - {0})
    axis.set_xscale("log")
    axis.set_xticks(sizes, minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("tokens of memory")
    axis.set_title(name)
    axis.grid(alpha=0.3)


def _save(figure: Figure, axes, path: Path) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels), 3 * len(axes))
    # Below, where it hides no curve.
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    save_figure(figure, path)


def _short(tokens: float, _) -> str:
    return f"{tokens / 1e6:g}M" if tokens >= 1e6 else f"{tokens / 1e3:g}K"
