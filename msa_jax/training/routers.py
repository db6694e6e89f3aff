"""What becomes of the routers while they are trained: a plot, and a word when a layer collapses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from msa_jax.core.routing import COLLAPSED
from msa_jax.typing import PyTree

FILE_NAME = "routers.png"
_OF_LAYER = re.compile(r"(recall@\d+|collapse)/layer_(\d+)")


class CollapseWatch:
    """Says of each layer that it has collapsed, and again only if it had recovered meanwhile."""

    def __init__(self):
        self._collapsed: set[int] = set()

    def warning(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A sentence about the layers that have collapsed since the last call, if any have."""
        collapse = _by_layer(metrics).get("collapse", {})
        found = {layer for layer, value in collapse.items() if value > COLLAPSED}
        # Below half of the level; a layer that is close to it shall not be warned of all the time.
        lasting = {layer for layer in self._collapsed if collapse.get(layer, 0) > COLLAPSED / 2}
        fresh, self._collapsed = sorted(found - self._collapsed), found | lasting
        if not fresh:
            return None
        layers = ", ".join(f"{layer} ({collapse[layer]:.2f})" for layer in fresh)
        return (
            f"Step {step}: these router layers choose the same documents whatever is asked, with "
            f"collapse above {COLLAPSED}: {layers}; if that lasts beyond the first steps, raise "
            "aux_weight or lower the temperature of the stage, or leave them out of "
            "memory.router_layers."
        )


def plot_routers(lines: Sequence[Mapping[str, PyTree]], path: Path) -> None:
    """Draws recall and collapse of each router layer over the steps of a run.

    Args:
        lines: of `metrics.jsonl`.
        path: of the PNG file.
    """
    series: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for line in lines:
        for metric, by_layer in _by_layer(line).items():
            for layer, value in by_layer.items():
                series.setdefault(metric, {}).setdefault(layer, []).append((line["step"], value))
    if not series:
        return
    layers = sorted(set().union(*series.values()))
    colors = ScalarMappable(Normalize(layers[0], max(layers[-1], layers[0] + 1)), "viridis")
    figure = Figure(figsize=(1 + 4.2 * len(series), 4), layout="constrained")
    axes = figure.subplots(1, len(series), sharex=True, squeeze=False)[0]
    for axis, (metric, by_layer) in zip(axes, series.items(), strict=True):
        for layer, points in sorted(by_layer.items()):
            axis.plot(*zip(*points, strict=True), color=colors.to_rgba(layer), linewidth=1)
        joint = [
            (line["step"], line[f"{metric}/joint"]) for line in lines if f"{metric}/joint" in line
        ]
        if joint:
            axis.plot(*zip(*joint, strict=True), color="black", label="mean score of all")
        if metric == "collapse":
            axis.axhline(COLLAPSED, color="C3", linestyle="--", label="collapsed above")
        for step in _stage_ends(lines):
            axis.axvline(step, color="grey", linestyle=":", linewidth=1)
        axis.set_title(metric)
        axis.set_xlabel("step")
        axis.set_ylim(-0.02 if metric != "collapse" else None, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.colorbar(colors, ax=axes, label="router layer", ticks=layers)
    figure.savefig(path, dpi=120)


def _by_layer(metrics: Mapping[str, PyTree]) -> dict[str, dict[int, float]]:
    """Values by metric and layer of what is logged of each layer."""
    found: dict[str, dict[int, float]] = {}
    for name, value in metrics.items():
        if match := _OF_LAYER.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = value
    return found


def _stage_ends(lines: Sequence[Mapping[str, PyTree]]) -> list[int]:
    """The last step of each stage but the last."""
    pairs = zip(lines, lines[1:], strict=False)
    return [line["step"] for line, after in pairs if line["stage"] != after["stage"]]
