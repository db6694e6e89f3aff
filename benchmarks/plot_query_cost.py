"""Plots what a question costs against the size of the memory.

python -m benchmarks.engine_bench --full --output=docs/results/records.jsonl
python -m benchmarks.plot_query_cost NVIDIA_H200 docs/query_cost.png
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.records import read_records

_STAGES = {
    "prefill_ms": "routing, fetching and prefill",
    "decode_ms_per_token": "each token of the answer",
    "add_ms": "adding a document of 256 tokens",
}
_NAMES = {"msa_4b": "MSA-4B", "msa_135m": "135M model"}


def plot_query_cost(records: Mapping[str, Mapping[str, Any]], device: str, path: str) -> None:
    """Draws what `engine_bench` measured on a device: a colour per stage, a marker per model.

    Raises:
        ValueError: if there is nothing of that device.
    """
    own = [records[name] for name in records if name.startswith(f"{device}/engine/")]
    rows = [row for row in own if "memory_tokens" in row]
    if not rows:
        raise ValueError(f"no record starts with {device}/engine/; run benchmarks.engine_bench.")
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
    plot_query_cost(read_records(), *sys.argv[1:])
