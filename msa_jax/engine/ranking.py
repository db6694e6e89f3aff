"""One ranking of documents: from what every router layer listed, and from several rankings.

Layers disagree usefully: the mean over layers finds more than any single layer, and more than the
largest score does. `benchmarks/ranking_rules.py` compares rules, docs/performance.md has figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from msa_jax.typing import Float, Int

# Documents that a layer lists for a ranking, so that scores do not depend on how many are wanted.
LISTED = 64
# Of reciprocal rank fusion, as published: the higher, the less first places count.
_FUSION_OFFSET = 60


def rank_documents(
    ids: Int[np.ndarray, "L k"], scores: Float[np.ndarray, "L k"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """All documents that some layer listed, by the mean of their scores, best first.

    A layer that does not list a document counts as the lowest score that it lists.

    Args:
        ids: of each layer, best first; -1 where it found fewer.
        scores: of these documents.

    Returns:
        Documents and their mean scores; of equal ones, the lower id first.
    """
    listed = ids >= 0
    documents, at = np.unique(ids[listed], return_inverse=True)
    lowest = np.where(listed, scores, np.inf).min(axis=1, initial=np.inf)
    of_layers = np.broadcast_to(lowest[:, None], (len(ids), len(documents))).copy()
    of_layers[np.nonzero(listed)[0], at] = scores[listed]
    means = of_layers[listed.any(axis=1)].mean(axis=0) if len(documents) else np.zeros(0)
    order = np.argsort(-means, kind="stable")
    return documents[order], means[order]


def fuse_rankings(rankings: Sequence[Int[np.ndarray, " n"]]) -> Int[np.ndarray, " m"]:
    """Merges rankings by reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009).

    A document has 1 / (60 + rank), from rank 1 on, of each ranking that has it. What counts is
    ranks alone, so that scores of different prompts need not be comparable.

    Args:
        rankings: of documents, each once in a ranking, best first.

    Returns:
        All documents, best first; of equal ones, first that of the earlier ranking.
    """
    shares: dict[int, list[float]] = {}
    for ranking in rankings:
        for rank, document in enumerate(ranking.tolist(), start=1):
            shares.setdefault(document, []).append(1 / (_FUSION_OFFSET + rank))
    # An exact sum, so that the same ranks in another order are a tie.
    return np.array(sorted(shares, key=lambda document: -math.fsum(shares[document])), int)
