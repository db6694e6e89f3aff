"""One ranking of documents from what every router layer listed."""

from __future__ import annotations

import numpy as np

from msa_jax.typing import Float, Int


def rank_documents(
    ids: Int[np.ndarray, "L k"], scores: Float[np.ndarray, "L k"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """All documents that some layer listed, best first.

    Args:
        ids: of each layer, best first; -1 where it found fewer.
        scores: of these documents.

    Returns:
        Documents, and each one's largest score in any layer.
    """
    documents, inverse = np.unique(ids[ids >= 0], return_inverse=True)
    best = np.full(len(documents), -np.inf, scores.dtype)
    np.maximum.at(best, inverse, scores[ids >= 0])
    order = np.argsort(-best, kind="stable")
    return documents[order], best[order]
