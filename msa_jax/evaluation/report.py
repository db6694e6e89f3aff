"""Results of an evaluation for people (a table, a plot) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax

from msa_jax.evaluation.plots import plot_scaling
from msa_jax.evaluation.scaling import ScalingPoint
from msa_jax.version import __version__


def write_report(
    directory: str | os.PathLike, points: Sequence[ScalingPoint], facts: Mapping[str, Any]
) -> str:
    """Writes `results.json`, `scaling.png` and `scaling.svg`, and returns the table to print.

    Args:
        directory: where the files go.
        points: what was measured.
        facts: anything else to keep with it (configuration, times).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    results = {
        "points": [dataclasses.asdict(point) for point in points],
        "versions": {
            "msa_jax": __version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "python": platform.python_version(),
        },
        "devices": [device.device_kind for device in jax.devices()],
        **facts,
    }
    partial = directory / "results.json.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / "results.json")
    plot_scaling(points, directory / "scaling")
    return format_table(points)


def format_table(points: Sequence[ScalingPoint]) -> str:
    """One line per kind of question and size of memory; recall of every layer, best first."""
    metrics = list(points[0].recall)
    header = ["questions", "memory", "documents", "chance"]
    header += [f"{metric} best layer" for metric in metrics]
    header += [f"{metric} by layer" for metric in metrics] + ["right id"]
    rows = [header]
    for point in sorted(points, key=lambda point: (point.kind, point.memory_tokens)):
        best = [point.best_layer(metric) for metric in metrics]
        rows.append(
            [
                f"{point.kind} ({point.questions})",
                f"{point.memory_tokens / 1024:,.0f}K",
                f"{point.documents:,.0f}",
                f"{point.chance:.3f}",
                *(f"{recall:.3f} (layer {layer})" for layer, recall in best),
                *(
                    " ".join(f"{layer}:{recall:.3f}" for layer, recall in point.recall[m].items())
                    for m in metrics
                ),
                f"{point.id_accuracy:.3f}",
            ]
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table; the first is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
