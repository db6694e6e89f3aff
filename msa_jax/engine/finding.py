"""Finds documents for questions: what the routers and the words list, and a second look at that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from msa_jax.engine.fusion import Fusion, Listing
from msa_jax.engine.look import Look

# All candidates on an accelerator, where a look takes a fraction of a millisecond; on two CPU cores
# it takes some tenths of a second.
_LOOKS, _LOOKS_ON_CPU = 64, 4


def default_looks() -> int:
    """Documents to look at for a question where nobody says how many."""
    return _LOOKS_ON_CPU if jax.default_backend() == "cpu" else _LOOKS


@dataclasses.dataclass(frozen=True)
class Finder:
    """Makes one ranking of what several sources have found.

    Attributes:
        fusion: of the model.
        look: of the model; None to rank by routers and words alone.
        texts: text tokens of the documents with these ids.
        looks: documents to look at for a question.
    """

    fusion: Fusion
    look: Look | None
    texts: Callable[[Sequence[int]], Sequence[np.ndarray]]
    looks: int

    def find(
        self, questions: Sequence[str], routers: Sequence[Listing], words: Sequence[Listing]
    ) -> list[Listing]:
        """Ranks documents for each question, with probabilities.

        Args:
            questions: in words.
            routers: what the routers listed for each question.
            words: what each question's words found.
        """
        candidates = [self.fusion.candidates(*own) for own in zip(routers, words, strict=True)]
        if self.look is None or not self.looks:
            return candidates
        looked = [listing.ids[: self.looks].tolist() for listing in candidates]
        wanted = list(dict.fromkeys(document for ids in looked for document in ids))
        text_of = dict(zip(wanted, self.texts(wanted), strict=True)) if wanted else {}
        pairs = [
            (text_of[document], question)
            for question, ids in zip(questions, looked, strict=True)
            for document in ids
        ]
        logits = np.split(self.look.logits(pairs), np.cumsum([len(ids) for ids in looked])[:-1])
        return [
            self.fusion.ranking(*own)
            for own in zip(candidates, logits, routers, words, strict=True)
        ]
