"""Plots what routing over 100M tokens takes, from the tables of docs/performance.md.

python -m benchmarks.plot_routing docs/performance.md docs/routing.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

# What a bar is: the row of a table, as it begins, and the column, as it is headed.
_BARS = {
    "upstream's way, in PyTorch": ("64 query tokens", "PyTorch, ms"),
    "upstream's way, in JAX": ("64 query tokens", "JAX, fused, ms"),
    "msa_jax, bfloat16 keys": ("64 query tokens, bfloat16", "ms"),
    "the limit: reading these keys once": ("64 query tokens, bfloat16", "plain reduction, ms"),
    "msa_jax, int8 keys, rescored": ("the same, int8 with rescoring", "ms"),
    "the limit: reading those once": ("the same, int8 with rescoring", "plain reduction, ms"),
}


def read_bars(page: str) -> dict[str, float]:
    """Milliseconds of each bar.

    Args:
        page: Markdown with the tables.

    Raises:
        KeyError: if a row or a column is not there.
    """
    cells = {}
    for paragraph in page.split("\n\n"):
        if not paragraph.startswith("|"):
            continue
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in paragraph.splitlines()
        ]
        for row in rows:
            # The first table that has a cell counts: others are about other machines.
            for name, cell in zip(header[1:], row[1:], strict=True):
                cells.setdefault((row[0], name), cell)
    return {name: float(cells[place].split()[0]) for name, place in _BARS.items()}


def plot_routing(bars: dict[str, float], path: str) -> None:
    """Draws the bars from top to bottom."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    names = list(bars)
    colours = ["C0" if name.startswith("msa_jax") else "0.7" for name in names]
    drawn = axis.barh(names, list(bars.values()), color=colours)
    axis.bar_label(drawn, [f"{value:g} ms" for value in bars.values()], padding=4)
    axis.invert_yaxis()
    axis.set(xscale="log", xlim=(0.1, 4 * max(bars.values())), xlabel="milliseconds a layer")
    axis.set_title("Choosing 16 documents in 100M tokens, one H100")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    plot_routing(read_bars(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
