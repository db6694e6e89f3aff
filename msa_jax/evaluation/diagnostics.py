"""What router layers do: what they find, whether they agree, how they score, if they collapse.

Everything is computed from what layers listed for questions, `Listings`, which come from the scores
of a training step (`listings_of_scores`) or from the engine's rounds (`listings_of_rounds`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from msa_jax.core.routing import COLLAPSED, choices_in_common
from msa_jax.engine.interleave import Round
from msa_jax.evaluation import metrics
from msa_jax.figures import save_figure
from msa_jax.typing import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Listings:
    """What each router layer listed for each question.

    Attributes:
        documents: best first; -1 where a layer found fewer.
        scores: of these documents; -inf likewise.
    """

    documents: Int[np.ndarray, "L B k"]
    scores: Float[np.ndarray, "L B k"]


@dataclasses.dataclass(frozen=True)
class ScoreHistograms:
    """How positives and negatives score in each layer, as shares of each kind.

    Attributes:
        edges: of the bins, the same for all layers.
        positives: share of a layer's positives in each bin; zeros where it listed none.
        negatives: likewise.
    """

    edges: Float[np.ndarray, " bins+1"]
    positives: Float[np.ndarray, "L bins"]
    negatives: Float[np.ndarray, "L bins"]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is known of router layers.

    Attributes:
        layers: their numbers in the model.
        top_k_docs: documents that count as chosen.
        recall: share of the positives among the first documents, by how many of them count.
        agreement: mean Jaccard index of what two layers choose for the same question.
        shared: share of its choices that a question has in common with another one, by layer.
        chance: what `shared` would be if documents were chosen at random.
        collapse: `shared` on the scale from chance, 0, to `most`, 1.
        histograms: of scores.
        most: what `shared` would be if the same documents were preferred whatever is asked; less
            than 1 if questions have memories of their own.
    """

    layers: tuple[int, ...]
    top_k_docs: int
    recall: dict[int, Float[np.ndarray, " L"]]
    agreement: Float[np.ndarray, "L L"]
    shared: Float[np.ndarray, " L"]
    chance: float
    collapse: Float[np.ndarray, " L"]
    histograms: ScoreHistograms
    most: float = 1.0

    def warnings(self) -> list[str]:
        """A sentence for each layer that has collapsed, with what to do."""
        return [
            f"Router layer {layer} chooses the same documents whatever is asked: two questions "
            f"share {shared:.0%} of their top {self.top_k_docs}, and {self.chance:.0%} would be "
            "chance; train routers for longer, with a higher aux_weight or a lower temperature of "
            "the stage, or leave this layer out of memory.router_layers."
            for layer, shared, collapse in zip(self.layers, self.shared, self.collapse, strict=True)
            if collapse > COLLAPSED
        ]


def listings_of_scores(doc_scores: Float[np.ndarray, "L B M"]) -> Listings:
    """All documents, by the scores of a training step (those of one memory).

    Args:
        doc_scores: -inf for a document that does not exist.
    """
    scores = np.asarray(doc_scores, np.float32)
    order = np.argsort(-scores, axis=-1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=-1)
    return Listings(np.where(scores > -np.inf, order, -1), scores)


def listings_of_rounds(rounds: Sequence[Round]) -> Listings:
    """What the engine's layers listed, by the ids of documents; one round for each question."""
    longest = max(one.ids.shape[1] for one in rounds)

    def stacked(name: str, nothing: float) -> np.ndarray:
        arrays = (getattr(one, name) for one in rounds)
        widths = ((x, ((0, 0), (0, longest - x.shape[1]))) for x in arrays)
        return np.stack([np.pad(x, w, constant_values=nothing) for x, w in widths], axis=1)

    return Listings(stacked("ids", -1), stacked("scores", -np.inf))


def diagnose(
    listings: Listings,
    positives: Sequence[Collection[int]],
    num_documents: int,
    layers: Sequence[int],
    top_k_docs: int = 16,
) -> Diagnosis:
    """Everything there is to know of router layers.

    Args:
        listings: of the layers.
        positives: documents that each question needs, numbered as in `listings`.
        num_documents: that layers could choose from.
        layers: their numbers in the model, as `ModelConfig.router_layers` has them.
        top_k_docs: documents that a layer chooses.

    Raises:
        ValueError: if the arguments do not belong together.
    """
    num_layers, num_questions, num_listed = listings.documents.shape
    if num_listed < min(top_k_docs, num_documents):
        raise ValueError(
            f"layers listed {num_listed} documents, fewer than the {top_k_docs} that they choose; "
            "lower top_k_docs, or have more listed."
        )
    if (num_layers, num_questions) != (len(layers), len(positives)):
        raise ValueError(
            f"listings are of {num_layers} layers and {num_questions} questions, but there are "
            f"{len(layers)} layers and the positives of {len(positives)} questions; give those "
            "that were measured."
        )
    shared, chance, collapse = shared_choices(listings, num_documents, top_k_docs)
    depths = sorted({1, min(4, top_k_docs), top_k_docs})
    return Diagnosis(
        tuple(layers),
        top_k_docs,
        {depth: layer_recall(listings, positives, depth) for depth in depths},
        layer_agreement(listings, top_k_docs),
        shared,
        chance,
        collapse,
        score_histograms(listings, positives),
    )


def layer_recall(
    listings: Listings, positives: Sequence[Collection[int]], count: int
) -> Float[np.ndarray, " L"]:
    """Recall of each layer among its first `count`, over the questions that have positives."""
    recalls = [
        [metrics.recall_at(metrics.ranks_of(ranking, list(needed)), count) for ranking in of_layers]
        for of_layers, needed in zip(listings.documents.swapaxes(0, 1), positives, strict=True)
        if needed
    ]
    return np.mean(recalls, axis=0) if recalls else np.zeros(len(listings.documents))


def layer_agreement(listings: Listings, top_k_docs: int) -> Float[np.ndarray, "L L"]:
    """Mean Jaccard index of what two layers choose: 1 for the same documents, 0 for none in common.

    Two layers that both choose nothing agree.
    """
    num_layers, num_questions = listings.documents.shape[:2]
    total = np.zeros((num_layers, num_layers))
    for question in range(num_questions):
        chosen = [set(row[row >= 0]) for row in listings.documents[:, question, :top_k_docs]]
        for i, j in np.ndindex(total.shape):
            union = len(chosen[i] | chosen[j])
            total[i, j] += len(chosen[i] & chosen[j]) / union if union else 1.0
    return total / max(num_questions, 1)


def shared_choices(
    listings: Listings, num_documents: int, top_k_docs: int
) -> tuple[Float[np.ndarray, " L"], float, Float[np.ndarray, " L"]]:
    """How much of what a layer chooses for a question it chooses for another one, too.

    Args:
        listings: of the layers.
        num_documents: that they could choose from.
        top_k_docs: documents that a layer chooses.

    Returns:
        `shared`, `chance` and `collapse`, as in `Diagnosis`. Of fewer than two questions, or of no
        more documents than are chosen, nothing can be said: collapse is 0.
    """
    num_layers, num_questions = listings.documents.shape[:2]
    found = []
    for layer in listings.documents[..., :top_k_docs]:
        _, times_chosen = np.unique(layer[layer >= 0], return_counts=True)
        # As floats, since pairs of questions times documents soon exceed 32 bits.
        sizes = float(num_questions), float(num_documents), top_k_docs
        found.append(choices_in_common(times_chosen.astype(float), *sizes))
    shared, (expected, *_), (possible, *_) = np.array(found, float).reshape(num_layers, 3).T
    shared, chance = shared / max(possible, 1), expected / max(possible, 1)
    comparable = chance < 1 and possible > 0
    collapse = (shared - chance) / (1 - chance) if comparable else np.zeros(num_layers)
    return shared, float(chance), collapse


def score_histograms(
    listings: Listings, positives: Sequence[Collection[int]], num_bins: int = 40
) -> ScoreHistograms:
    """How positives and negatives that were listed score in each layer."""
    listed, positive = listings.documents >= 0, is_positive(listings, positives)
    found = listings.scores[listed]
    edges = (
        np.histogram_bin_edges(found, num_bins) if found.size else np.linspace(0, 1, num_bins + 1)
    )

    def shares(of_kind: Bool[np.ndarray, "L B k"]) -> Float[np.ndarray, "L bins"]:
        counts = np.stack(
            [
                np.histogram(scores[mask], edges)[0]
                for scores, mask in zip(listings.scores, of_kind, strict=True)
            ]
        )
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    return ScoreHistograms(edges, shares(positive), shares(listed & ~positive))


def is_positive(
    listings: Listings, positives: Sequence[Collection[int]]
) -> Bool[np.ndarray, "L B k"]:
    """Whether each document that was listed is one that its question needs."""
    of_questions = [
        np.isin(listings.documents[:, question], list(needed))
        for question, needed in enumerate(positives)
    ]
    return np.stack(of_questions, axis=1)


def plot_diagnosis(diagnosis: Diagnosis, folder: Path) -> None:
    """Draws all that is known as `layers`, `agreement` and `scores`, each as PNG and SVG."""
    plot_layers(diagnosis, folder / "layers")
    plot_agreement(diagnosis, folder / "agreement")
    plot_scores(diagnosis, folder / "scores")


def plot_layers(diagnosis: Diagnosis, path: Path) -> None:
    """Recall of each layer, and how much of its choices questions share."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    recall, shared = figure.subplots(1, 2, sharey=True)
    for depth, values in diagnosis.recall.items():
        recall.plot(diagnosis.layers, values, marker="o", label=f"recall@{depth}")
    recall.set_title("share of positives found")
    # The threshold as a share of choices, as the line that it is for has them.
    limit = diagnosis.chance + COLLAPSED * (diagnosis.most - diagnosis.chance)
    shared.plot(diagnosis.layers, diagnosis.shared, marker="o", label="two questions")
    shared.axhline(limit, color="C3", linestyle="--", label="collapsed above")
    shared.axhline(diagnosis.chance, color="grey", linestyle=":", label="chance")
    shared.set_title(f"share of the top {diagnosis.top_k_docs} in common")
    for axis in (recall, shared):
        axis.set_xticks(diagnosis.layers)
        axis.set_xlabel("router layer")
        axis.set_ylim(-0.02, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    save_figure(figure, path)


def plot_agreement(diagnosis: Diagnosis, path: Path) -> None:
    """A matrix of how much any two layers agree."""
    side = 2.5 + 0.45 * len(diagnosis.layers)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(diagnosis.agreement, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(diagnosis.agreement):
        color = "black" if value > 0.5 else "white"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    ticks = range(len(diagnosis.layers))
    axis.set_xticks(ticks, diagnosis.layers)
    axis.set_yticks(ticks, diagnosis.layers)
    axis.set_xlabel("router layer")
    axis.set_ylabel("router layer")
    axis.set_title(f"Jaccard index of the top {diagnosis.top_k_docs}")
    figure.colorbar(image)
    save_figure(figure, path)


def plot_scores(diagnosis: Diagnosis, path: Path) -> None:
    """Histograms of the scores of positives and negatives, one panel per layer."""
    histograms, columns = diagnosis.histograms, min(4, len(diagnosis.layers))
    rows = -(-len(diagnosis.layers) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in panels[len(diagnosis.layers) :]:
        axis.set_visible(False)
    kinds = {"negatives": histograms.negatives, "positives": histograms.positives}
    for at, (axis, layer) in enumerate(zip(panels, diagnosis.layers, strict=False)):
        for kind, shares in kinds.items():
            axis.stairs(shares[at], histograms.edges, fill=True, alpha=0.5, label=kind)
        axis.set_title(f"router layer {layer}", fontsize="medium")
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.supxlabel("score")
    figure.supylabel("share of each kind")
    save_figure(figure, path)
