"""What the routers did with the questions of a suite: `diagnostics` of what they listed anyway."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msa_jax.evaluation.diagnostics import (
    Diagnosis,
    Listings,
    diagnose,
    is_positive,
    layer_recall,
    plot_diagnosis,
    shared_choices,
)
from msa_jax.evaluation.memories import Memories
from msa_jax.evaluation.retrieval import EncodedMemory
from msa_jax.typing import Float, Int

# Questions whose memories are compared, and orders of preference that are tried on them.
_COMPARED, _ORDERS = 64, 8
# Where questions that prefer the same share less than this, nothing can be said about collapse.
_LEAST_IN_COMMON = 0.1


def report_routers(
    folder: Path,
    memory: EncodedMemory,
    memories: Memories,
    size: int,
    found: Sequence[tuple[Int[np.ndarray, "L listed"], Float[np.ndarray, "L listed"]]],
) -> list[str]:
    """Writes what the routers did on a set, as plots and as `diagnosis.json`.

    Args:
        folder: where the files go.
        memory: that was searched.
        memories: of the set.
        size: of memory, by index.
        found: parts and scores that the layers listed for each question (`Router.search`).

    Returns:
        A sentence for each layer that has collapsed.
    """
    diagnosis = _diagnose(memory, memories, size, found)
    values = {
        "questions": len(memories.questions),
        "memory_tokens": memories.sizes[size],
        **dataclasses.asdict(diagnosis),
        "warnings": diagnosis.warnings(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    plot_diagnosis(diagnosis, folder)
    text = json.dumps(_rounded(values), indent=2)
    (folder / "diagnosis.json").write_text(text + "\n", encoding="utf-8")
    return diagnosis.warnings()


def _diagnose(
    memory: EncodedMemory, memories: Memories, size: int, found: Sequence[tuple]
) -> Diagnosis:
    config = memory.loaded.config
    parts = Listings(*(np.stack(arrays, axis=1) for arrays in zip(*found, strict=True)))
    num_parts, top_k_docs = round(memories.num_parts[:, size].mean()), config.memory.top_k_docs
    own = [part.tolist() for part in memories.own]
    diagnosis = diagnose(parts, own, num_parts, config.router_layers, top_k_docs)
    # A document is found with its best part.
    documents = np.where(parts.documents < 0, -1, memory.corpus.document[parts.documents])
    by_document = Listings(documents, parts.scores)
    recall = {x: layer_recall(by_document, memories.documents, x) for x in diagnosis.recall}
    # Positives are in the memory of their question whatever others have, and rightly chosen.
    others = np.where(is_positive(parts, own), -1, parts.documents)
    shared, *_ = shared_choices(Listings(others, parts.scores), num_parts, top_k_docs)
    chance, most = _shared_by_others(memory, memories, size, top_k_docs)
    scale = most - chance if most > max(chance, _LEAST_IN_COMMON) else np.inf
    return dataclasses.replace(
        diagnosis,
        recall=recall,
        shared=shared,
        chance=chance,
        collapse=(shared - chance) / scale,
        most=most,
    )


def _shared_by_others(
    memory: EncodedMemory, memories: Memories, size: int, top_k_docs: int
) -> tuple[float, float]:
    """What two questions share if choices are at random, and if always the same are preferred.

    Each question chooses from its own memory, as far as some of them show; positives are left out.
    """
    count = len(memories.questions)
    some = np.linspace(0, count - 1, min(count, _COMPARED)).astype(int).tolist()
    index = memory.of_questions(memories, size, some, positives=False).index
    masks = np.asarray(index.doc_mask[0])
    pairs = max(len(some) * (len(some) - 1), 1)
    rng, sizes = np.random.default_rng(0), masks.sum(axis=1)

    def in_common(choosing: np.ndarray) -> float:
        """Documents that two questions have in common, given how many have each."""
        return float((choosing * (choosing - 1.0)).sum() / pairs)

    def preferring_the_same() -> float:
        order = rng.permutation(masks.shape[1])
        chosen = [order[np.flatnonzero(mask[order])[:top_k_docs]] for mask in masks]
        return in_common(np.bincount(np.concatenate(chosen), minlength=len(order)))

    chosen = np.minimum(sizes, top_k_docs).mean()
    at_random = in_common(masks.sum(axis=0)) * (chosen / max(sizes.mean(), 1)) ** 2
    same = np.mean([preferring_the_same() for _ in range(_ORDERS)])
    return float(at_random / max(chosen, 1)), float(same / max(chosen, 1))


def _rounded(value: Any) -> Any:
    """What JSON can hold of nested values, with five decimals."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_rounded(one) for one in value]
    return round(float(value), 5) if isinstance(value, float | np.floating) else value
