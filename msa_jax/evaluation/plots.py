"""Plots of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from msa_jax.evaluation.scaling import ScalingPoint
from msa_jax.figures import save_figure


def plot_scaling(points: Sequence[ScalingPoint], path: Path) -> None:
    """Recall of the best router layer against memory size, one panel per kind; PNG and SVG."""
    kinds = sorted({point.kind for point in points})
    figure = Figure(figsize=(5.2 * len(kinds), 4), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        curve = sorted(
            (point for point in points if point.kind == kind), key=lambda p: p.memory_tokens
        )
        sizes = [point.memory_tokens for point in curve]
        for metric in reversed(curve[0].recall):
            recalls = [point.best_layer(metric)[1] for point in curve]
            axis.plot(sizes, recalls, marker="o", label=f"{metric}, best layer")
        right = [point.id_accuracy for point in curve]
        axis.plot(sizes, right, marker="s", linestyle="--", label="generated id right")
        chance = [point.chance for point in curve]
        axis.plot(sizes, chance, color="grey", linestyle=":", label="chance, " + metric_of(curve))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(_short))
        axis.set_xticks(sizes)
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("tokens of memory")
        axis.set_title(f"{kind}: {curve[0].questions} held-out questions")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of questions")
    axes[0].legend()
    save_figure(figure, path)


def metric_of(curve: Sequence[ScalingPoint]) -> str:
    """The widest recall of a curve, which its chance level belongs to."""
    return list(curve[0].recall)[-1]


def _short(tokens: float, _) -> str:
    return f"{tokens / 2**20:g}M" if tokens >= 2**20 else f"{tokens / 2**10:g}K"
