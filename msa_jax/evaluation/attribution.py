"""Draws what the tokens of an answer attend to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from msa_jax.engine.attribution import Attribution, Chunk
from msa_jax.figures import save_figure
from msa_jax.typing import Float

# Chunks that get a line of their own, and characters of their text.
_MOST_CHUNKS, _TEXT_WIDTH = 12, 40


def plot_attribution(attribution: Attribution, path: Path) -> None:
    """Draws where the attention of each token goes, a column for each.

    Chunks in memory come first, those that get most; then memory as a whole, originals that were
    read, and the rest of the conversation, which sum to one; last, what each layer has for memory
    and originals together.

    Args:
        attribution: of an answer.
        path: what is written is beside it, as PNG and SVG.
    """
    panels = {
        "chunks in memory": _of_chunks(attribution),
        "everything": _of_everything(attribution),
        "documents, in memory and read, by router layer": (
            [str(layer) for layer in attribution.layers],
            1 - attribution.on_rest,
        ),
    }
    if not attribution.attended:
        del panels["chunks in memory"]
    rows, columns = [len(names) for names, _ in panels.values()], len(attribution.tokens)
    size = (6 + 0.35 * columns, 3 + 0.24 * sum(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=rows)
    for axis, (title, (names, shares)) in zip(axes, panels.items(), strict=True):
        # Chunks get little each: every panel has a scale of its own.
        image = axis.imshow(shares, vmin=0, vmax=max(shares.max(), 1e-6), aspect="auto")
        axis.set_yticks(range(len(names)), names, fontsize="small")
        axis.set_title(title, fontsize="medium")
        figure.colorbar(image, ax=axis, format="{x:.3g}")
    tokens = [_plain(repr(token)[1:-1]) for token in attribution.tokens]
    axes[-1].set_xticks(range(columns), tokens, rotation=90, fontsize="small")
    figure.suptitle(_plain(attribution.question), fontsize="medium")
    save_figure(figure, path)


def _of_chunks(attribution: Attribution) -> tuple[list[str], Float[np.ndarray, "lines W"]]:
    """Names and shares, means over layers, of the chunks that get most."""
    shares = attribution.on_chunks.mean(axis=0).T
    most = np.argsort(-shares.mean(axis=1), kind="stable")[:_MOST_CHUNKS]
    return [_chunk_name(attribution.attended[i]) for i in most], shares[most]


def _of_everything(attribution: Attribution) -> tuple[list[str], Float[np.ndarray, "lines W"]]:
    """Names and shares, means over layers, of what sums to one."""
    memory = attribution.on_chunks.sum(axis=-1, keepdims=True)
    everything = [memory, attribution.on_originals, attribution.on_rest[..., None]]
    read = [f"[{document}], read" for document in attribution.read]
    names = ["memory", *read, "question and answer so far"]
    return names, np.concatenate(everything, axis=-1).mean(axis=0).T


def _chunk_name(chunk: Chunk) -> str:
    text = " ".join(chunk.text.split())
    text = text if len(text) <= _TEXT_WIDTH else text[: _TEXT_WIDTH - 1] + "…"
    return _plain(f"[{chunk.document}] chunk {chunk.index}: {text}")


def _plain(text: str) -> str:
    """Text that is drawn as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
