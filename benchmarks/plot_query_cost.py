"""Plots what a question costs against the size of the memory.

python -m benchmarks.engine_bench --full --output=docs/query_cost.jsonl
python -m benchmarks.plot_query_cost docs/query_cost.jsonl docs/query_cost.png
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

_STAGES = {
    "prefill_ms": "routing, fetching and prefill",
    "decode_ms_per_token": "each token of the answer",
    "add_ms": "adding a document of 256 tokens",
}
_NAMES = {"msa_4b": "MSA-4B", "msa_135m": "135M model"}


def plot_query_cost(lines: list[str], path: str) -> None:
    """Draws the JSON lines of `engine_bench`: a colour per stage, a marker per model."""
    rows = [row for row in map(json.loads, lines) if "memory_tokens" in row]
    by_geometry = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["memory_tokens"]):
        by_geometry[row["geometry"]].append(row)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for marker, (geometry, points) in zip("os^D", by_geometry.items(), strict=False):
        sizes = [point["memory_tokens"] / 1e6 for point in points]
        for colour, (field, label) in zip(("C0", "C1", "C2"), _STAGES.items(), strict=True):
            name = f"{_NAMES.get(geometry, geometry)}: {label}"
            values = [point[field] for point in points]
            axis.plot(sizes, values, marker=marker, color=colour, label=name)
    axis.set(xscale="log", xlabel="million tokens of memory", ylabel="milliseconds")
    axis.set_title(f"One {rows[0]['device']}")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    plot_query_cost(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(), sys.argv[2])
