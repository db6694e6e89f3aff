"""Plots what routing over 100M tokens takes.

python -m benchmarks.routing_bench --full --output=docs/results/records.jsonl
python -m benchmarks.plot_routing NVIDIA_H200 docs/routing.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.records import read_records
from benchmarks.routing_bench import LARGE
from benchmarks.routing_cases import Case

# What a bar is: a case, and a field of its record.
_BARS = {
    "upstream's way, in PyTorch": (Case(LARGE, 64), "upstream_torch_ms"),
    "upstream's way, in JAX": (Case(LARGE, 64), "upstream_fused_ms"),
    "msa_jax, bfloat16 keys": (Case(LARGE, 64), "ms"),
    "the limit: reading these keys once": (Case(LARGE, 64), "reduction_ms"),
    "msa_jax, int8 keys, rescored": (Case(LARGE, 64, dtype="int8"), "ms"),
    "the limit: reading those once": (Case(LARGE, 64, dtype="int8"), "reduction_ms"),
}


def bars_of(records: Mapping[str, Mapping[str, Any]], device: str) -> dict[str, float]:
    """Milliseconds of each bar.

    Args:
        records: by name.
        device: how their names start.

    Raises:
        KeyError: if a record or a field of it is not there.
    """
    return {
        bar: records[f"{device}/routing/{case.name}"][field] for bar, (case, field) in _BARS.items()
    }


def plot_routing(bars: dict[str, float], device: str, path: str) -> None:
    """Draws the bars from top to bottom."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    names = list(bars)
    colours = ["C0" if name.startswith("msa_jax") else "0.7" for name in names]
    drawn = axis.barh(names, list(bars.values()), color=colours)
    axis.bar_label(drawn, [f"{value:g} ms" for value in bars.values()], padding=4)
    axis.invert_yaxis()
    axis.set(xscale="log", xlim=(0.1, 4 * max(bars.values())), xlabel="milliseconds a layer")
    axis.set_title(f"Choosing 16 documents in 100M tokens, one {device.replace('_', ' ')}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    plot_routing(bars_of(read_records(), sys.argv[1]), *sys.argv[1:])
